"""The verb `plan`: its FLOPs against a count of the traced step, its bytes by hand, its words."""

import json
import pathlib

import pytest

from gkd.distill.train_step import Part
from gkd.jobs import command_line
from gkd.jobs.command_line import Command
from gkd.jobs.plan_flops import UPDATE, step_flops
from gkd.parallel import roofline
from tests.products import products

TINY = str(pathlib.Path(__file__).with_name("tiny.gin"))
DISTIL = (
    "DIVERGENCE=@divergences.generalized_jsd", "BETA=0.1", "TEACHER_MODEL=%STUDENT_MODEL",
)  # fmt: skip
# Of the tiny student, by hand: kernels of attention and feed-forward layers, norms; bias tables.
ENCODER, DECODER = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16, 8 * 16 * 16 + 3 * 16 * 32 + 3 * 16
PARAMETERS = ENCODER + DECODER + 2 * (2 * 32 + 16) + 2 * 64 * 16


def traced(*overrides):
    command = Command("train", (TINY,), ("MODEL_DIR='none'", *overrides))
    return command_line.configure(command)(dry_run=lambda program: program)


def plan(capsys, *options, code=0):
    """The printed lines of a plan, or the error's."""
    arguments = ["plan", f"--gin_file={TINY}", "--gin.MODEL_DIR='none'", *options]
    assert command_line.main(arguments) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


# Counting


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        ((), None),
        ((*DISTIL, "LAMBDA=0.0"), None),
        ((*DISTIL, "LAMBDA=1.0"), 12),
        ((*DISTIL, "LAMBDA=0.5"), 12),
        ((*DISTIL, "LAMBDA=1.0", "SAMPLES=3"), 12),
        ((*DISTIL, "LAMBDA=1.0", "ROLLOUT_LENGTH=5"), 5),
        ((*DISTIL, "LAMBDA=1.0", "MICROBATCHES=2"), 12),
        ((*DISTIL, "LAMBDA=1.0", "DROPOUT_RATE=0.1"), 12),
    ],
)
def test_the_closed_form_is_what_the_traced_step_multiplies(overrides, length):
    program = traced(*overrides)
    arguments = program.state.abstract, program.expert and program.expert.shapes, program.batch
    counted = 2 * products(program.step.step, *arguments, loop_trips=length)
    costs = step_flops(program, length or 12, split=False)
    assert sum(costs.values()) * program.mesh.size == pytest.approx(counted, rel=0.01)
    assert (costs[Part.SAMPLING] > 0) == (length is not None)


def test_sampling_that_ends_early_costs_less():
    program = traced(*DISTIL, "LAMBDA=1.0")
    all_of_it, third = (step_flops(program, length) for length in (12, 4))
    loops = [
        costs[Part.SAMPLING] - step_flops(program, 0)[Part.SAMPLING] for costs in (all_of_it, third)
    ]
    assert loops[1] == pytest.approx(loops[0] / 3)
    assert third[UPDATE] == all_of_it[UPDATE]


def test_heads_that_do_not_divide_are_computed_by_every_chip():
    split = traced(*DISTIL, "MODEL_PARALLELISM=2")
    whole = traced(*DISTIL, "MODEL_PARALLELISM=8")  # two heads
    ideal = [sum(step_flops(program, 12, split=False).values()) for program in (split, whole)]
    assert ideal[0] == ideal[1]
    assert sum(step_flops(split, 12).values()) == pytest.approx(ideal[0])
    assert sum(step_flops(whole, 12).values()) > 1.5 * ideal[1]


# The command


def test_a_plan_says_what_a_chip_holds_and_takes(capsys, tmp_path):
    output = tmp_path / "plan.json"
    options = [f"--gin.{override}" for override in (*DISTIL, "LAMBDA=1.0")]
    said = plan(
        capsys, *options, "--topology=cpu:8", "--mesh=data:4,model:2", "--programs=step",
        "--expected_length=6", "--price=2", f"--output={output}",
    )  # fmt: skip
    assert "step: fits" in said
    found = json.loads(output.read_text())
    step, setting = found["programs"]["step"], found["setting"]
    assert setting["mesh"] == {"data": 4, "model": 2}
    # Everything but the norms' vectors is split over two chips; AdamW has two moments.
    vectors = 16 * (3 + 2 + 1 + 1)  # norms: a decoder layer's, an encoder layer's, the last ones
    share = 4 * ((PARAMETERS - vectors) / 2 + vectors)
    assert step["held_bytes"]["parameters"] == share
    assert step["held_bytes"]["teacher"] == share
    assert step["held_bytes"]["optimizer"] == pytest.approx(2 * share, abs=16)
    assert step["flops"] == pytest.approx(step["closed_form_flops"], rel=0.03)
    assert set(step["seconds_by_part"]) == {*Part, "update"}
    assert all(
        step["seconds_by_part"][name] > 0 for name in (Part.SAMPLING, Part.TEACHER, "update")
    )
    rate = 16 / step["seconds"]
    assert step["examples_per_second"] == pytest.approx(rate)
    assert step["price"] == pytest.approx(2 * 8 * 40 * step["seconds"] / 3600)


def test_a_run_that_does_not_fit_is_told_what_to_change(capsys, monkeypatch):
    small = roofline.Chip(1e11, 30_000, 2e10, 1e10)
    monkeypatch.setitem(roofline.CHIPS, "cpu", small)
    said = plan(capsys, "--topology=cpu:8", "--programs=step")
    assert "does NOT fit" in said
    assert "FULLY_SHARDED=True" in said


def test_a_search_ranks_what_divides(capsys):
    said = plan(capsys, "--topology=cpu:2", "--search", "--gin.BATCH_SIZE=2")
    assert "data:2,model:1 × 1 microbatches: fits" in said
    assert "data:1,model:2 × 2 microbatches: fits" in said
    assert "data:2,model:1 × 2 microbatches" not in said  # one row a chip
    assert said.index("ranked: ") > said.index("× 1 microbatches")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology=v9:4x4",), "topology is 'v9:4x4': use GENERATION:SHAPE"),
        (("--topology=cpu:no",), "topology is cpu:no: use a number of devices"),
        (("--topology=cpu:8", "--mesh=data:3,model:2"), "data × model is 6, the chips are 8"),
        (("--topology=cpu:8", "--mesh=rows:8"), "write it as data:64,model:4"),
        (("--topology=cpu:8", "--programs=steps"), "choose of step, sft, evaluation"),
        (
            ("--topology=cpu:8", "--output=/no/such/folder/plan.json"),
            "/no/such/folder is no folder",
        ),
        (
            ("--topology=cpu:8", "--expected_length=13"),
            "--expected_length is 13.0: outputs have at most 12",
        ),
    ],
)
def test_mistakes_get_one_line(capsys, options, message):
    said = plan(capsys, *options, code=1)
    assert message in said
    assert said.count("\n") == 1


def test_an_option_that_does_not_exist_is_a_usage_error(capsys):
    said = plan(capsys, "--topologie=cpu:8", code=2)
    assert "unknown argument '--topologie'" in said
    assert "python -m gkd plan --help" in said
