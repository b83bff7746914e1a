"""Which programs a plan compiles, one after the other."""

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


def test_fine_tuning_leaves_out_the_teacher_and_the_method():
    experiment = traced(*DISTIL, "LAMBDA=1.0", "SAMPLES=2").experiment
    tuned = fine_tuning(experiment)
    assert experiment.teacher != Teacher() == tuned.teacher
    assert (tuned.method.divergence, tuned.method.samples) == (None, 1)
    assert tuned.student == experiment.student and tuned.batches == experiment.batches
