"""The collectives of a run's compiled step, its memory per chip, and its reads by the host."""

import re

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from gkd.cli import command_line
from gkd.distill import fused
from gkd.plan import program_report, report_lines
from gkd.plan.memory import resident
from gkd.program_cost.hlo import parse
from gkd.program_cost.program_cost import program_cost
from gkd.program_cost.topologies import topology_devices
from gkd.runs.monitor import Monitor
from gkd.train.model_flops import step_flops
from tests.paths import TINY
from tests.plan.counting import LAYERS, STACKED, counted_step
from tests.plan.planning import DISTIL, traced

VOCABULARY, ROWS, TARGET = 4096, 16, 12
LOGITS = 4 * ROWS * TARGET * VOCABULARY
WIDE = (*DISTIL, "LAMBDA=1.0", f"t5.T5Config.vocab_size={VOCABULARY}")


def compiled_collectives(*overrides):
    program = traced(*WIDE, *overrides)
    text = program.lower()["step"]().compile().as_text()
    return program, program_cost(text).collectives


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("MODEL_PARALLELISM=2",), marks=pytest.mark.slow),
        ("MODEL_PARALLELISM=4",),
        ("FULLY_SHARDED=True",),
    ],
)
def test_no_chip_gathers_the_vocabulary_of_all_tokens(overrides):
    program, collectives = compiled_collectives(*overrides)
    kernel = 4 * 16 * VOCABULARY
    assert 10 * kernel < LOGITS
    assert collectives
    for one in collectives:  # the gradients may be added up in one collective
        limit = LOGITS / 4 if one.kind == "all-reduce" else 1.1 * kernel
        assert one.bytes <= limit, one
    assert program.mesh.size == 8


def test_attention_is_split_by_heads_or_by_rows_or_not_at_all():
    """Two heads: over two chips, over eight with rows that divide, and with rows that do not."""
    heads = traced(*DISTIL, "MODEL_PARALLELISM=2")
    rows = traced(*DISTIL, "MODEL_PARALLELISM=8")
    whole = traced(*DISTIL, "MODEL_PARALLELISM=8", "MICROBATCHES=4")
    ideal = sum(step_flops(heads, 12, split=False).values())
    assert ideal == sum(step_flops(rows, 12, split=False).values())
    for program in (heads, rows):
        assert sum(step_flops(program, 12).values()) == pytest.approx(ideal)
    assert sum(step_flops(whole, 12).values()) > 1.5 * ideal
    assert program_report.split_by_rows(heads) == program_report.undivided(heads) == []
    assert program_report.undivided(rows) == [] and program_report.split_by_rows(whole) == []
    said = "the student's 2 heads do not divide over model=8: its attention is split by rows"
    assert said in report_lines.heading(rows)
    said = "the teacher's attention (2 heads, nor do 4 rows divide over all chips) is not split"
    assert said in report_lines.heading(whole)


@pytest.mark.parametrize(
    "ways",
    [
        STACKED,
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in ((), ("REMAT=True", *STACKED), ("MICROBATCHES=2",))
        ),
    ],
)
def test_a_step_whose_rows_are_over_both_axes_counts_as_divided_evenly(ways):
    """Two heads on four chips: but for what is done again, nothing is done twice."""
    cost, closed_form = counted_step("MODEL_PARALLELISM=4", *ways)
    program = traced(*DISTIL, *LAYERS, "LAMBDA=1.0", "MODEL_PARALLELISM=4", *ways)
    assert closed_form == pytest.approx(sum(step_flops(program, 12, split=False).values()))
    assert cost.flops == pytest.approx(closed_form, rel=0.03)


# A student of two heads and a teacher of four on a model axis of four.
UNEQUAL = (
    *STACKED, "MODEL_PARALLELISM=4", "TEACHER_MODEL=@teacher/t5.T5Config()",
    "teacher/t5.T5Config.num_heads=4",
)  # fmt: skip


@pytest.mark.slow
def test_rows_over_both_axes_gather_states_and_no_weights(optimized):
    """Of a student whose heads do not divide.

    A token gathers the rows of a layer before its feed-forward block, the last states, and twice in
    its draw; the update a layer's rows forward and backward.
    """
    _, collectives = compiled_collectives(*UNEQUAL)
    gathers = [one for one in collectives if one.kind == "all-gather"]
    in_loop = [one for one in gathers if "gkd_sampling" in one.source]
    assert 2 * TARGET <= sum(one.count for one in in_loop) <= (1 + 1 + 2) * TARGET
    rows = ROWS // 2  # of one place on the data axis
    states = {4 * rows * 16 * length for length in (1, TARGET, 24)}
    draws = {one.bytes for one in in_loop} - states
    assert {one.bytes for one in gathers} - draws <= states
    assert all(size <= 4 * rows * 128 for size in draws), draws  # of classes of ids


@pytest.mark.slow
def test_the_students_rows_leave_the_teachers_as_they_are_on_a_tpu(optimized):
    """There the two share the mask: placed for the student, the teacher's layers gathered it."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu")
    wide = "t5.T5Config.emb_dim=256", "t5.T5Config.head_dim=64", "INPUT_LENGTH=128"
    program = traced(*WIDE, *wide, *UNEQUAL, devices=topology_devices("v5e:2x4"))
    collectives = program_cost(program.lower()["step"]().compile().as_text()).collectives
    gathers = [one for one in collectives if one.kind == "all-gather"]
    assert any("gkd_sampling" in one.source for one in gathers)
    assert not [one for one in gathers if "gkd_teacher" in one.source]


@pytest.mark.slow
def test_a_fully_sharded_head_is_gathered_once_on_a_tpu(optimized, monkeypatch):
    """And not for every block of positions; CPUs hoist the gather out of the loop by themselves."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu")
    monkeypatch.setattr(fused, "_BLOCK_BYTES", 4 * ROWS // 8 * 65536)  # a position a block
    wide = ("t5.T5Config.vocab_size=65536", "t5.T5Config.emb_dim=256", "FULLY_SHARDED=True")
    program = traced(
        *DISTIL, *wide, "LAMBDA=0.0", "BATCH_SIZE=16", devices=topology_devices("v5e:2x4")
    )
    collectives = program_cost(program.lower()["step"]().compile().as_text()).collectives
    head = [one for one in collectives if one.kind == "all-gather" and one.bytes >= 2 * 65536 * 256]
    assert head and sum(one.count for one in head) <= 4, head  # two models, a table and a head each


def test_fully_sharded_parameters_are_on_one_chip_only():
    program = traced(*WIDE, "FULLY_SHARDED=True", "MODEL_PARALLELISM=2")
    held = resident(program)
    sizes = [leaf.size for leaf in jax.tree.leaves(program.state.abstract.params)]
    # Vectors and the small tables of relative positions stay whole.
    assert held["parameters"] < 1.1 * 4 * sum(sizes) / 8
    assert held["optimizer"] < 1.1 * 8 * sum(sizes) / 8


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((), marks=pytest.mark.slow, id="data"),
        pytest.param(("MODEL_PARALLELISM=4",), marks=pytest.mark.slow, id="model"),
        pytest.param(("FULLY_SHARDED=True", "MODEL_PARALLELISM=2"), id="fully sharded"),
    ],
)
def compiled(request):
    program = traced(*WIDE, *request.param)
    return program, program.lower()["step"]().compile()


def test_no_array_of_a_chip_is_larger_than_its_share_of_the_logits(compiled):
    """Logits of a chip's rows and ids are the largest array; whole ones would be eight times that.

    At T5-XXL's size the same bound is 1/8 of [batch, length, vocabulary], on eight chips.
    """
    _, program = compiled
    computations = parse(program.as_text()).computations.values()
    lines = [line for one in computations for line in one.instructions.values()]
    largest = max(lines, key=lambda line: max((array.bytes for array in line.shape), default=0))
    assert max(array.bytes for array in largest.shape) <= LOGITS / 8, largest


def test_state_and_teacher_enter_and_leave_the_program_split(compiled):
    """Of the compiled program's own shardings: what is over 4 kB is on as many chips as said."""
    run, program = compiled
    whole = ("data",) if not run.rules["embed"] else ()  # axes along which copies are allowed
    copies = int(np.prod([run.mesh.shape[axis] for axis in whole]))
    state, teacher = run.state.abstract, run.teacher.shapes
    entering, leaving = program.input_shardings[0], program.output_shardings
    pairs = [(state, entering[0]), (teacher, entering[1]), (state, leaving[0])]
    checked = 0
    for shapes, shardings in pairs:
        for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
            if leaf.size * leaf.dtype.itemsize <= 4096:
                continue
            share = int(np.prod(sharding.shard_shape(leaf.shape)))
            assert share == leaf.size * copies / 8, (leaf.shape, sharding)
            checked += 1
    assert checked >= 2 * 3 + 2 + 2 * 3  # embedding and head: with two moments, teacher, after


def test_the_whole_state_is_donated(compiled):
    """Every leaf of the new state is written where the old one lies; the teacher stays."""
    run, program = compiled
    head = program.as_text().partition("\n")[0]
    aliased = re.findall(r"\{(\d+)\}: \((\d+), \{\}", head)
    leaves = jax.tree.leaves(run.state.abstract)
    assert [(int(out), int(argument)) for out, argument in aliased] == [
        (number, number) for number in range(len(leaves))
    ]
    held = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves
    )
    assert program.memory_analysis().alias_size_in_bytes == held


def test_a_step_reads_back_nothing_but_its_metrics(tmp_path, monkeypatch, no_evaluations):
    """The transfer guard cannot see reads on CPU: every read of an array's value is noted."""
    read, noting = [], [False]
    value = ArrayImpl._value.fget

    def note(array):
        if noting[0]:
            read.append(array.shape)
        return value(array)

    def begins(self, what, step=None):
        noting[0] = what == "step" and 2 < step < 6

    monkeypatch.setattr(ArrayImpl, "_value", property(note))
    monkeypatch.setattr(Monitor, "begins", begins)
    options = [f'MODEL_DIR="{tmp_path}"', "TRAIN_STEPS=7", "EVALUATE_EVERY=0", "CHECKPOINT_EVERY=0"]
    options += ["EVALUATION_EXAMPLES=16", "experiment.Execution.tensorboard=False"]
    arguments = ["train", f"--gin_file={TINY}", *(f"--gin.{text}" for text in options)]
    assert command_line.main(arguments) == 0
    assert read and set(read) == {()}
    assert len(read) % 3 == 0 and len(read) / 3 < 50
    assert np.prod(read[0]) == 1
