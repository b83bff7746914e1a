"""The verb `plan`: its FLOPs against a count of the traced step, its bytes by hand, its words."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from gkd.distill.train_step import Part
from gkd.jobs import command_line, plan_programs, plan_report
from gkd.jobs.command_line import Command
from gkd.jobs.plan_flops import UPDATE, step_flops, useful_flops
from gkd.jobs.plan_memory import cache_bytes
from gkd.parallel import roofline
from gkd.parallel.program_cost import program_cost, program_memory
from gkd.parallel.topologies import topology_devices
from tests.products import products

TINY = str(pathlib.Path(__file__).with_name("tiny.gin"))
DISTIL = (
    "DIVERGENCE=@divergences.generalized_jsd", "BETA=0.1", "TEACHER_MODEL=%STUDENT_MODEL",
)  # fmt: skip
# Of the tiny student, by hand: kernels of attention and feed-forward layers, norms; bias tables.
ENCODER, DECODER = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16, 8 * 16 * 16 + 3 * 16 * 32 + 3 * 16
PARAMETERS = ENCODER + DECODER + 2 * (2 * 32 + 16) + 2 * 64 * 16


def traced(*overrides, devices=None):
    command = Command("train", (TINY,), ("MODEL_DIR='none'", *overrides))
    return command_line.configure(command)(dry_run=lambda program: program, devices=devices)


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
        ((*DISTIL, "LAMBDA=1.0", "REMAT=True"), 12),
        (("REMAT=True", "STUDENT_STACKED=True"), None),
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


@pytest.mark.parametrize(
    ("model", "rows"), [(1, 24), (4, 24), (4, 12)], ids=["data", "rows over both", "rows do not"]
)
def test_evaluation_and_generation_cost_their_closed_form(optimized, model, rows):
    program = traced(
        *DISTIL, "LAMBDA=1.0", f"EVALUATION_BATCH_SIZE={rows}", f"MODEL_PARALLELISM={model}"
    )
    planned = {
        **plan_programs.evaluation_programs(program),
        **plan_programs.generation_programs(program),
    }
    assert list(planned) == [
        "evaluation: student", "evaluation: teacher", "evaluation: divergences",
        "generation: student", "generation: teacher",
    ]  # fmt: skip
    for name in ("evaluation: teacher", "evaluation: divergences", "generation: student"):
        text = planned[name].lower().compile().as_text()
        for length in (12, 3):
            counted = program_cost(text, expected_share=length / 12).flops
            assert counted == pytest.approx(planned[name].flops(length), rel=0.03), name
    assert "optimizer" in planned["evaluation: student"].held
    assert list(planned["generation: student"].held) == ["parameters"]


def test_a_run_without_a_teacher_measures_no_divergence():
    program = traced()
    assert list(plan_programs.evaluation_programs(program)) == ["evaluation: student"]
    assert list(plan_programs.generation_programs(program)) == ["generation: student"]


def test_halves_of_a_step_cost_their_closed_form(optimized):
    rewarded = ("REWARD=@rewards.rouge", "rewards.rouge.name='rouge1'", "ALPHA=0.5", "LAMBDA=1.0")
    program = traced(*DISTIL, *rewarded)
    planned = plan_programs.step_programs(program)
    assert list(planned) == ["step: rollout", "step: update"]
    for one in planned.values():
        counted = program_cost(one.lower().compile().as_text()).flops
        assert counted == pytest.approx(one.flops(12), rel=0.03)


STACKED = ("STUDENT_STACKED=True", "TEACHER_STACKED=True")
LAYERS = ("t5.T5Config.num_encoder_layers=4", "t5.T5Config.num_decoder_layers=4")


def counted_step(*overrides, devices=None):
    """(the count of the compiled on-policy step, its closed form)."""
    program = traced(*DISTIL, *LAYERS, "LAMBDA=1.0", *overrides, devices=devices)
    (planned,) = plan_programs.step_programs(program).values()
    return program_cost(planned.lower().compile().as_text()), planned.flops(12)


def check_loops_count_as_unrolled(devices, *overrides):
    looped, closed_form = counted_step(*STACKED, *overrides, devices=devices)
    unrolled, _ = counted_step(*overrides, devices=devices)
    layers = [loop for loop in looped.loops if loop.bound == 4]
    assert len(layers) >= 6  # the student's two stacks forward and backward, the teacher's two
    assert not any(loop.bound == 4 for loop in unrolled.loops)
    assert looped.flops == pytest.approx(unrolled.flops, rel=0.03)
    assert looped.flops == pytest.approx(closed_form, rel=0.03)


def test_a_step_of_stacked_layers_counts_as_the_unrolled_one(optimized):
    check_loops_count_as_unrolled(None, "MODEL_PARALLELISM=2")


def test_chips_have_the_same_work_on_a_larger_slice(optimized):
    """Rows of a chip are the same on 2 and on 8."""
    two, _ = counted_step("BATCH_SIZE=4", devices=jax.devices()[:2])
    eight, _ = counted_step("BATCH_SIZE=16")
    assert eight.flops == pytest.approx(two.flops, rel=0.05)


@pytest.fixture
def tpus(optimized):
    """The chips of a slice that is not here."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu")
    return topology_devices("v5e:2x2")


WIDE = (
    "t5.T5Config.emb_dim=256", "t5.T5Config.num_heads=4", "t5.T5Config.head_dim=64",
    "t5.T5Config.mlp_dim=512", "INPUT_LENGTH=128",
)  # fmt: skip


@pytest.mark.slow
def test_a_step_of_stacked_layers_counts_as_the_unrolled_one_on_a_tpu(tpus):
    check_loops_count_as_unrolled(tpus, *WIDE)
    check_loops_count_as_unrolled(tpus, *WIDE, "MODEL_PARALLELISM=2", "MICROBATCHES=2")


@pytest.mark.slow
def test_a_tpu_that_is_too_small_gets_a_verdict(tpus):
    program = traced(*DISTIL, "BATCH_SIZE=16384", "INPUT_LENGTH=1024", devices=tpus)
    (planned,) = plan_programs.step_programs(program).values()
    found = plan_programs.measure(planned.lower, roofline.CHIPS["v5e"], 1.0)
    assert found.memory is None and found.needed > roofline.CHIPS["v5e"].memory


# Memory


@pytest.mark.parametrize(
    ("model", "rows", "divided"), [(1, 16, 8), (2, 16, 8), (4, 16, 8), (4, 4, 2)]
)
def test_the_cache_is_what_decoding_keeps(model, rows, divided):
    """Against the shapes that `init_cache` makes; two heads do not divide over four chips."""
    program = traced(f"MODEL_PARALLELISM={model}")
    learner, samples = program.learner, 3

    def kept(params, tokens):
        encoded = learner.model.encode(params, tokens)
        weights, cache = learner.model.init_cache(params, encoded, 12, samples)
        return cache, [(layer.cross_keys, layer.cross_values) for layer in weights.layers]

    tokens = jax.ShapeDtypeStruct((rows, 24), jnp.int32)
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(kept, learner.shapes, tokens))]
    assert cache_bytes(program, learner, rows, 12, samples) == 4 * sum(sizes) / divided


@pytest.mark.parametrize("overrides", [(), ("FULLY_SHARDED=True", "MODEL_PARALLELISM=2")])
def test_what_is_held_and_temporary_is_what_the_compiler_says(overrides, optimized):
    program = traced(*DISTIL, "LAMBDA=1.0", *overrides)
    (planned,) = plan_programs.step_programs(program).values()
    memory = program_memory(planned.lower().compile())
    prompts = 4 * 16 * (24 + 1) / program.mesh.shape["data"]  # and weights; targets are not used
    assert memory.arguments == sum(planned.held.values()) + prompts
    assert memory.arguments <= memory.peak
    assert memory.peak <= memory.arguments + memory.outputs - memory.aliased + memory.temporaries


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (  # as libtpu 0.0.42.1 says it, of v5e
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (20.12G) exceeds available HBM (15.75G).",
            20.12 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Compilation failure: Ran out of memory in memory space hbm. Used "
            "512.5M of 15.75G hbm. Exceeded hbm capacity by 1.50G.",
            512.5 * 2**20,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", None),
        ("INVALID_ARGUMENT: (20.12G) exceeds available HBM (15.75G).", None),
    ],
)
def test_running_out_of_memory_is_told_from_other_failures(message, size):
    assert plan_programs.needed_memory(message) == size


def test_what_is_rematerialised_is_no_use():
    again, once = (traced("REMAT=True"), traced())
    assert sum(step_flops(again, 12).values()) > 1.2 * sum(step_flops(once, 12).values())
    assert useful_flops(again, 0) == useful_flops(once, 0)


# The command


def test_a_plan_says_what_a_chip_holds_and_takes(capsys, tmp_path):
    output = tmp_path / "plan.json"
    options = [f"--gin.{override}" for override in (*DISTIL, "LAMBDA=1.0")]
    said = plan(
        capsys, *options, "--topology=cpu:8", "--mesh=data:4,model:2", "--programs=step",
        "--expected_length=6", "--price=2", f"--output={output}",
    )  # fmt: skip
    assert "step: fits" in said
    assert "of which the decoding cache" in said
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
    held = sum(step["held_bytes"].values())
    assert held + step["temporary_bytes"] == step["peak_bytes"] == step["compiler"]["peak"]
    assert step["cache_bytes"] == 4 * 2 * (12 + 24) * 8 * 16 / 4  # one of two heads
    rate = 16 / step["seconds"]
    assert step["examples_per_second"] == pytest.approx(rate)
    assert step["price"] == pytest.approx(2 * 8 * 40 * step["seconds"] / 3600)


def test_evaluation_has_the_whole_run_beside_it(capsys, tmp_path):
    output = tmp_path / "plan.json"
    overrides = (f"--gin.{override}" for override in (*DISTIL, "LAMBDA=1.0"))
    programs = "--programs=evaluation,generation"
    said = plan(capsys, *overrides, "--topology=cpu:8", programs, f"--output={output}")
    found = json.loads(output.read_text())["programs"]
    assert all(f"\n{name}: fits" in said for name in found) and len(found) == 5
    greedy = found["evaluation: student"]
    held = greedy["held_bytes"]
    assert held["optimizer"] > 0 and held["teacher"] == held["parameters"]
    # The program's own arguments are the parameters and its prompts.
    assert (
        greedy["peak_bytes"]
        > greedy["compiler"]["peak"] + held["optimizer"] + 0.9 * (held["teacher"])
    )
    assert list(found["generation: teacher"]["held_bytes"]) == ["parameters"]


def test_a_run_that_does_not_fit_is_told_what_to_change(capsys, monkeypatch):
    small = roofline.Chip(1e11, 30_000, 2e10, 1e10)
    monkeypatch.setitem(roofline.CHIPS, "cpu", small)
    said = plan(capsys, "--topology=cpu:8", "--programs=step")
    assert "does NOT fit" in said
    assert "FULLY_SHARDED=True" in said and "--mesh" in said
    assert "MICROBATCHES=2" in said and "REMAT=True" in said
    rest = ("--gin.FULLY_SHARDED=True", "--gin.REMAT=True", "--gin.MICROBATCHES=2")
    said = plan(capsys, "--topology=cpu:8", "--programs=step", *rest)
    assert not any(option in said for option in rest)


def run_out(planned, chip, share):
    return plan_programs.Measured(None, 20.12 * 2**30, None, {}, 1.0)


def test_running_out_while_compiling_is_a_verdict(capsys, monkeypatch):
    monkeypatch.setattr(plan_report, "measure", run_out)
    said = plan(capsys, "--topology=cpu:8", "--programs=step")
    assert "step: does NOT fit: 20.12 of 16.00 GiB (" in said
    assert "change: --gin.MICROBATCHES=2" in said


def test_a_count_that_is_not_the_closed_form_gives_no_figure(capsys, monkeypatch, tmp_path):
    def four_percent_more(*arguments, **how):
        return {name: 1.04 * cost for name, cost in step_flops(*arguments, **how).items()}

    monkeypatch.setattr(plan_programs, "step_flops", four_percent_more)
    output = tmp_path / "plan.json"
    options = ("--topology=cpu:8", "--programs=step", f"--output={output}")
    message = plan(capsys, *options, code=1)
    assert "no estimate of step" in message
    step = json.loads(output.read_text())["programs"]["step"]
    assert step["fits"] and "they differ by more than" in step["refused"]
    assert not {"flops", "bytes", "collectives", "mfu", "examples_per_second"} & set(step)


def test_a_search_ranks_what_divides(capsys):
    said = plan(capsys, "--topology=cpu:2", "--search", "--gin.BATCH_SIZE=2")
    tried, ranked = said.split("ranked:")
    assert "data:2,model:1 × 1 microbatches: fits" in tried
    assert "data:1,model:2 × 2 microbatches: fits" in tried
    assert "data:2,model:1 × 2 microbatches" not in tried  # one row a chip
    times = [float(line.split("at best ")[1].split()[0]) for line in ranked.strip().splitlines()]
    assert len(times) == 3 and times == sorted(times)


def test_a_search_goes_on_when_candidates_fail(capsys, monkeypatch, tmp_path):
    """One runs out of memory, another is refused by the compiler: both are among the results."""
    measure = plan_programs.measure
    fates = iter([run_out, None])

    def measured(lower, chip, share):
        fate = next(fates, measure)
        if fate is None:
            raise RuntimeError("INTERNAL: Mosaic failed\nto compile")
        return fate(lower, chip, share)

    monkeypatch.setattr(plan_report, "measure", measured)
    output = tmp_path / "plan.json"
    options = ("--topology=cpu:2", "--search", "--gin.BATCH_SIZE=2", f"--output={output}")
    said = plan(capsys, *options)
    assert "data:2,model:1 × 1 microbatches: does NOT fit: 20.12 of 16.00 GiB" in said
    assert "does not compile: RuntimeError: INTERNAL: Mosaic failed to compile" in said
    found = json.loads(output.read_text())["candidates"]
    assert [one["fits"] for one in found] == [True, False, False]
    assert "failed" in found[2]


def test_a_search_in_which_nothing_fits_says_what_to_change(capsys, monkeypatch):
    monkeypatch.setattr(plan_report, "measure", run_out)
    said = plan(capsys, "--topology=cpu:1", "--search", "--gin.BATCH_SIZE=2")
    assert "nothing fits" in said and "change: " in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology=v9:4x4",), "topology is 'v9:4x4': use GENERATION:SHAPE"),
        (("--topology=cpu:no",), "topology is cpu:no: use a number of devices"),
        (("--topology=cpu:8", "--mesh=data:3,model:2"), "data × model is 6, the chips are 8"),
        (("--topology=cpu:8", "--mesh=rows:8"), "write it as data:64,model:4"),
        (("--topology=cpu:8", "--programs=steps"), "choose of step, sft, evaluation, generation"),
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
