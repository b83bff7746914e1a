"""Which programs a plan compiles, one after the other."""

import json

import pytest

from gkd.configuration.experiment import Teacher
from gkd.errors import InvalidValue
from gkd.plan.program_reports import ProgramReports, fine_tuning
from gkd.program_cost.roofline import CHIPS
from tests.plan.planning import DISTIL, traced


def reports(program, report, said, saved):
    return ProgramReports(
        step=program, build=lambda _: program, report=report, rows=None, chip=CHIPS["cpu"],
        prices={"price": None, "chips": 8}, say=said.append, save=saved.append,
    )  # fmt: skip


def test_every_program_is_saved_before_the_next_is_compiled():
    order, record = [], {
        "resident_bytes": {}, "temporary_bytes": 0, "cache_bytes": 0, "peak_bytes": 0,
        "capacity_bytes": 1, "fits": True, "seconds": None,
    }  # fmt: skip
    said, saved = [], []

    def report(label, program, planned):
        order.append((label, len(saved)))
        return record | ({"refused": "they differ"} if label == "step" else {})

    planning = reports(traced(*DISTIL, "LAMBDA=1.0"), report, said, saved)
    planning.measure(["step", "generation"])
    assert order == [("step", 0), ("generation: student", 1), ("generation: teacher", 2)]
    assert list(saved[-1]["programs"]) == [label for label, _ in order]
    planning.compare(None, "cpu:8")
    with pytest.raises(InvalidValue, match="no estimate of step: its FLOPs"):
        planning.refuse()


REWARDED = (
    "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "LAMBDA=1.0",
    "ALPHA=0.0", "SAMPLES=2", "POLICY_LOSS='grpo'",
)  # fmt: skip


def half(seconds, peak, **more):
    counts = dict.fromkeys(("flops", "closed_form_flops", "bytes", "dcn_bytes"), seconds)
    return counts | {
        "resident_bytes": {}, "temporary_bytes": 0, "cache_bytes": 0, "peak_bytes": peak,
        "capacity_bytes": 9, "fits": True, "seconds": seconds, "compile_seconds": 1.0,
        "seconds_without_overlap": 2 * seconds, "useful_flops": 1e11 * seconds,
        "collectives": {"all-reduce": (1.0, seconds)}, "dcn_collectives": {}, "dcn_seconds": None,
        **more,
    }  # fmt: skip


def test_the_halves_of_a_step_have_a_run_with_its_price_and_measured_time(tmp_path):
    """Three and four seconds: 40 steps of 16 rows on 8 chips at 2 each hour, at 100 GFLOP/s."""
    records = {
        "step: rollout": half(3.0, 2, seconds_by_part={"gkd_sampling": 3.0}),
        "step: update": half(4.0, 5, seconds_by_part={"gkd_teacher": 1.0, "update": 3.0}),
    }
    said, saved = [], []
    report = lambda label, *_: records[label]  # noqa: E731
    planning = reports(traced(*REWARDED), report, said, saved)
    planning.prices["price"] = 2.0
    planning.measure(["step"])
    step = saved[-1]["programs"]["step"]
    assert (step["seconds"], step["seconds_without_overlap"], step["peak_bytes"]) == (7.0, 14.0, 5)
    assert step["seconds_by_part"] == {"gkd_sampling": 3.0, "gkd_teacher": 1.0, "update": 3.0}
    assert step["collectives"] == {"all-reduce": (2.0, 7.0)}
    best, worst = step["run"].values()
    assert best["examples_per_second"] == pytest.approx(16 / 7)
    assert best["mfu"] == pytest.approx(1.0) and worst["mfu"] == pytest.approx(0.5)
    assert best["price"] == pytest.approx(2 * 7 * 40 * 8 / 3600) == worst["price"] / 2
    planning.compare(str(measured_directory(tmp_path, 21.0)), "cpu:8")
    assert "3.00 times the roofline lower bound, 1.50 times the time without" in said[-1]
    records["step: update"] |= {"seconds": None, "refused": "they differ"}
    planning.measure(["step"])
    with pytest.raises(InvalidValue, match="no estimate of step: update"):
        planning.refuse()
    assert "run" not in planning.records["step"]


def measured_directory(folder, seconds):
    launch = {"continues_from": 0, "devices": "8 cpu (cpu)", "started": "2026-01-01"}
    launch |= {"bindings": {}, "command_line": []}
    (folder / "launches.jsonl").write_text(json.dumps(launch) + "\n")
    row = {"step": 1, "seconds_per_step": seconds}
    (folder / "speed.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_fine_tuning_leaves_out_the_teacher_and_the_method():
    experiment = traced(*DISTIL, "LAMBDA=1.0", "SAMPLES=2").experiment
    tuned = fine_tuning(experiment)
    assert experiment.teacher != Teacher() == tuned.teacher
    assert (tuned.method.divergence, tuned.method.samples) == (None, 1)
    assert tuned.student == experiment.student and tuned.batches == experiment.batches
