"""The verb `plan`: its bytes by hand, and its words."""

import dataclasses
import json
import time

import pytest

from gkd.cli import command_line
from gkd.distill.train_step import Part
from gkd.plan import program_report, program_reports, programs
from gkd.program_cost import collectives, roofline
from tests.paths import TINY
from tests.plan.planning import DISTIL, plan, run_out, traced
from tests.products import products

# Of the tiny student, by hand: kernels of attention and feed-forward layers, norms; bias tables.
ENCODER, DECODER = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16, 8 * 16 * 16 + 3 * 16 * 32 + 3 * 16
PARAMETERS = ENCODER + DECODER + 2 * (2 * 32 + 16) + 2 * 64 * 16

ON_POLICY = tuple(f"--gin.{setting}" for setting in (*DISTIL, "LAMBDA=1.0"))


# Memory


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
    assert programs.needed_memory(message) == size


# The command


def test_a_plan_says_what_a_chip_holds_and_takes(capsys, tmp_path):
    output = tmp_path / "plan.json"
    run = (*DISTIL, "LAMBDA=1.0")
    options = [f"--gin.{override}" for override in (*run, "REMAT=True")]
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
    assert step["resident_bytes"]["parameters"] == share
    assert step["resident_bytes"]["teacher"] == share
    assert step["resident_bytes"]["optimizer"] == pytest.approx(2 * share, abs=16)
    assert step["flops"] == pytest.approx(step["closed_form_flops"], rel=0.03)
    assert set(step["seconds_by_part"]) == {*Part, "update"}
    assert all(
        step["seconds_by_part"][name] > 0 for name in (Part.SAMPLING, Part.TEACHER, "update")
    )
    held = sum(step["resident_bytes"].values())
    assert held + step["temporary_bytes"] == step["peak_bytes"] == step["compiler"]["peak"]
    assert step["cache_bytes"] == 4 * 2 * (12 + 24) * 8 * 16 / 4  # one of two heads
    assert step["seconds"] < step["seconds_without_overlap"]
    best, worst = step["run"]["roofline_lower_bound"], step["run"]["without_overlap"]
    for end, key in ((best, "seconds"), (worst, "seconds_without_overlap")):
        assert end["examples_per_second"] == pytest.approx(16 / step[key])
        assert end["chip_hours"] == pytest.approx(8 * 40 * step[key] / 3600)
        assert end["price"] == pytest.approx(2 * end["chip_hours"])
    assert f"price {best['price']:.2f} to {worst['price']:.2f} (roofline lower bound to" in said
    # MFU is of what the run multiplies without rematerialisation, at a cpu's 100 GFLOP/s.
    once = traced(*run)
    useful = 2 * products(
        once.step.step, once.state.abstract, once.teacher.shapes, once.batch, loop_trips=6
    )
    assert best["mfu"] == pytest.approx(useful / 8 / step["seconds"] / 1e11, rel=0.01)
    assert step["flops"] > 1.1 * useful / 8


def test_the_fine_tuning_of_a_student_has_no_teacher(capsys, tmp_path):
    output = tmp_path / "plan.json"
    options = [f"--gin.{override}" for override in (*DISTIL, "LAMBDA=1.0", "SAMPLES=2")]
    programs = ("--topology=cpu:1", "--programs=sft", f"--output={output}")
    assert "\nsft: fits" in plan(capsys, *options, *programs)
    (sft,) = json.loads(output.read_text())["programs"].values()
    assert "teacher" not in sft["resident_bytes"] and sft["cache_bytes"] == 0
    tuned = traced()  # without a divergence a run fine-tunes
    counted = 2 * products(tuned.step.step, tuned.state.abstract, None, tuned.batch)
    assert sft["closed_form_flops"] == pytest.approx(counted, rel=0.01)
    # The step of such a run is its fine-tuning: there is nothing else to plan.
    assert "sft" not in plan(capsys, *programs)


def test_what_slices_send_each_other_takes_the_networks_time(capsys, monkeypatch, tmp_path):
    """Three more collectives of 1 GB than the compiled program has, at 2 GB/s."""
    count = programs.program_cost

    def with_three_more(text, **how):
        cost = count(text, **how)
        more = collectives.Collective("all-reduce", 3.0, 1e9, 1e9, 2, True, "jit(step)/add")
        return dataclasses.replace(cost, collectives=(*cost.collectives, more))

    output = tmp_path / "plan.json"
    options = ("--topology=cpu:8", "--programs=step", f"--output={output}")
    seconds, said = [], []
    for dcn in (None, 2e9):
        chip = dataclasses.replace(roofline.CHIPS["cpu"], dcn=dcn)
        monkeypatch.setitem(roofline.CHIPS, "cpu", chip)
        monkeypatch.setattr(programs, "program_cost", with_three_more)
        said.append(plan(capsys, *options))
        seconds.append(json.loads(output.read_text())["programs"]["step"])
    sent = "DCN traffic: 3 all-reduces of 3000.0 MB; 3000.0 MB sent per chip, "
    assert sent + "not included in the times\n" in said[0]
    assert sent + "1500.00 ms\n" in said[1]
    assert "dcn_collectives" in seconds[0] and seconds[0]["dcn_seconds"] is None
    assert seconds[1]["seconds"] - seconds[0]["seconds"] == pytest.approx(1.5)
    parts = [step["seconds_by_part"]["update"] for step in seconds]
    assert parts[1] - parts[0] == pytest.approx(1.5)


def test_evaluation_has_the_whole_run_beside_it(capsys, tmp_path):
    output = tmp_path / "plan.json"
    overrides = (f"--gin.{override}" for override in (*DISTIL, "LAMBDA=1.0"))
    programs = "--programs=evaluation,generation"
    said = plan(capsys, *overrides, "--topology=cpu:1", programs, f"--output={output}")
    found = json.loads(output.read_text())["programs"]
    assert all(f"\n{name}: fits" in said for name in found) and len(found) == 5
    greedy = found["evaluation: student"]
    held = greedy["resident_bytes"]
    assert held["optimizer"] > 0 and held["teacher"] == held["parameters"]
    # The program's own arguments are the parameters and its prompts.
    assert (
        greedy["peak_bytes"]
        > greedy["compiler"]["peak"] + held["optimizer"] + 0.9 * (held["teacher"])
    )
    assert list(found["generation: teacher"]["resident_bytes"]) == ["parameters"]


def test_a_run_that_does_not_fit_is_told_what_to_change(capsys, monkeypatch):
    small = roofline.Chip(1e11, 30_000, 2e10, 1e10)
    monkeypatch.setitem(roofline.CHIPS, "cpu", small)
    said = plan(capsys, "--topology=cpu:8", "--programs=step")
    assert "does NOT fit" in said
    assert "FULLY_SHARDED=True" in said and "--mesh" in said
    assert "MICROBATCHES=2" in said and "REMAT=True" in said
    monkeypatch.setattr(program_report, "measure", run_out)
    rest = ("--gin.FULLY_SHARDED=True", "--gin.REMAT=True", "--gin.MICROBATCHES=2")
    said = plan(capsys, "--topology=cpu:8", "--programs=step", *rest)
    assert not any(option in said for option in rest)


def test_running_out_while_compiling_is_a_verdict(capsys, monkeypatch):
    monkeypatch.setattr(program_report, "measure", run_out)
    said = plan(capsys, "--topology=cpu:8", "--programs=step")
    assert "step: does NOT fit: 20.12 of 16.00 GiB (" in said
    assert "change: --gin.MICROBATCHES=2" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology=v9:4x4",), "topology is 'v9:4x4': use GENERATION:SHAPE"),
        (("--topology=cpu:no",), "topology is cpu:no: use a number of devices"),
        (("--topology=cpu:²",), "topology is cpu:²: use a number of devices"),
        (("--topology=cpu:8", "--mesh=data:3,model:2"), "data × model is 6, the chips are 8"),
        (("--topology=cpu:8", "--mesh=rows:8"), "write it as data:64,model:4"),
        (("--topology=cpu:8", "--mesh=data:²"), "write it as data:64,model:4"),
        (("--topology=cpu:8", "--programs=steps"), "choose of step, sft, evaluation, generation"),
        (
            ("--topology=cpu:8", "--output=README.md/plan.json"),
            "README.md is no folder: README.md/plan.json cannot be written there",
        ),
        (
            ("--topology=cpu:8", *ON_POLICY, "--gin.ROLLOUT_LENGTH=48"),
            "ROLLOUT_LENGTH is 48 and TARGET_LENGTH 12: the student samples at most",
        ),
        (
            ("--topology=cpu:8", "--expected_length=13"),
            "--expected_length is 13.0: completions have at most 12",
        ),
    ],
)
def test_mistakes_get_one_line(capsys, options, message):
    said = plan(capsys, *options, code=1)
    *progress, error = said.splitlines()
    assert error.startswith("gkd: error:") and message in error
    assert all(line.startswith("tracing") for line in progress), said  # before any compilation


def test_an_option_that_does_not_exist_is_a_usage_error(capsys):
    said = plan(capsys, "--topologie=cpu:8", code=2)
    assert "unknown argument '--topologie'" in said
    assert "python -m gkd plan --help" in said


@pytest.mark.parametrize("run", ["xsum/small", "wmt14_en_de/large", "gsm8k/base", "flan/small"])
def test_a_plan_needs_no_vocabulary(run, monkeypatch):
    """Only the number of its ids matters: T5's 32,100, in a table of 32,128."""
    monkeypatch.delenv("GKD_VOCABULARY", raising=False)
    monkeypatch.delenv("GKD_DATA", raising=False)
    planned = []
    monkeypatch.setattr(
        program_reports.ProgramReports, "measure", lambda self, names: planned.append(self.step)
    )
    stacked = "--gin.STUDENT_STACKED=True", "--gin.TEACHER_STACKED=True"  # a layer's trace
    options = [f"--gin_file=configs/runs/{run}.gin", "--topology=cpu:8", *stacked]
    assert command_line.main(["plan", *options]) == 0
    assert planned[0].task.vocabulary.vocab_size == 32100
    assert planned[0].valid.sum() == 32099


@pytest.mark.slow
def test_the_step_of_xl_and_small_compiles_within_a_minute_and_moves_no_scores(tmp_path):
    """By the defaults: 36 s on two idle cores, 60 s of CPU time; the bound is of hand-made counts.

    The update's bound was 12.9 ms when attention scores passed through HBM, and 8.7 GB its traffic.
    """
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu")
    output = tmp_path / "plan.json"
    options = ["--gin_file=configs/runs/xsum/small.gin", "--topology=v5e:4x4", "--programs=step"]
    began = time.process_time()
    assert command_line.main(["plan", *options, f"--output={output}"]) == 0
    cpu_seconds = time.process_time() - began
    step = json.loads(output.read_text())["programs"]["step"]
    assert cpu_seconds < 120, "two cores for a minute"
    assert step["seconds_by_part"]["update"] < 6.45e-3
    # Arithmetic alone takes 6.8 TFLOP ÷ 197 TFLOP/s = 34.4 ms, all traffic 17 ms.
    assert 34.4e-3 < step["seconds"] < 45e-3
    assert step["bytes"] < 15e9


def test_a_plan_for_gpus_has_their_dtypes_and_stacks(monkeypatch):
    """Fake CPU devices stand for them, on which models run in float32 and with layers apart."""
    planned = {}

    def measure(self, names):
        planned.update(programs.generation_programs(self.step), step=self.step)

    monkeypatch.setattr(program_reports.ProgramReports, "measure", measure)
    settings = (
        *DISTIL,
        "LAMBDA=1.0",
        "TEACHER_DTYPE='float32'",
        "t5.T5Config.num_encoder_layers=8",
    )
    options = [f"--gin.{setting}" for setting in (*settings, "MODEL_DIR='none'")]
    for topology, size, stacked in (("h100:1", 2, True), ("cpu:1", 4, False)):
        arguments = ["plan", f"--gin_file={TINY}", *options, f"--topology={topology}"]
        assert command_line.main(arguments) == 0
        step = planned["step"]
        assert step.student.config.dtype == {2: "bfloat16", 4: "float32"}[size]
        assert step.teacher.config.dtype == "float32"
        assert step.student.config.stacked_layers == step.teacher.config.stacked_layers == stacked
        for name in ("student", "teacher"):
            parameters = planned[f"generation: {name}"].held["parameters"]
            assert parameters == size * (PARAMETERS + 7 * ENCODER)
