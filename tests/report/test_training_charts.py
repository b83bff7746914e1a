"""Curves over training against means by hand."""

import pytest

from gkd.report.arms import group_runs
from gkd.report.run_records import find_runs
from gkd.report.training_charts import part_seconds, time_chart, training_charts
from tests.report.run_folders import write_run


def charts_of(folder, metrics=("bleu",)):
    arms = group_runs(find_runs([folder])[0])
    return {chart.name: chart for chart in training_charts(arms, metrics)}


def test_a_curve_is_the_mean_over_seeds_at_the_steps_that_all_have(tmp_path):
    write_run(tmp_path / "gkd/0", scores={0: 1.0, 10: 3.0, 20: 9.0}, seed=0)
    write_run(
        tmp_path / "gkd/1", scores={0: 2.0, 10: 5.0}, seed=1, complete=False,
        settings={"train_steps": "20"},
    )  # fmt: skip
    (line,) = charts_of(tmp_path)["bleu-by-step"].lines
    assert (list(line.x), list(line.y)) == ([0, 10], [1.5, 4.0])
    assert line.interval[1] == pytest.approx(12.706, abs=1e-3)  # of 3 and 5
    assert line.label == "all runs (n=2)"


def test_time_is_that_of_training_steps_averaged_over_seeds(tmp_path):
    for seed, seconds in enumerate((0.1, 0.3)):
        speed = [{"step": 10, "seconds_per_step": seconds}]
        write_run(tmp_path / f"gkd/{seed}", scores={0: 1.0, 10: 3.0}, seed=seed, speed=speed)
    (line,) = charts_of(tmp_path)["bleu-by-time"].lines
    assert list(line.x) == pytest.approx([0, 2])


def test_only_what_was_measured_at_two_steps_is_drawn(tmp_path):
    rows = [{"step": step, "train/repetition": 0.5} for step in (5, 10)]
    rows += [{"step": 5, "train/sample_entropy": 0.0}, {"step": 10, "train/sample_entropy": 0.0}]
    write_run(tmp_path / "gkd", scores={10: 3.0}, rows=rows)
    assert list(charts_of(tmp_path)) == ["repetition"]


def test_a_long_run_has_evenly_many_points_and_its_last(tmp_path):
    rows = [{"step": step, "train/repetition": 0.5} for step in range(1, 1001)]
    write_run(tmp_path / "gkd", scores={1000: 3.0}, rows=rows)
    x = list(charts_of(tmp_path)["repetition"].lines[0].x)
    assert (
        x[-1] == 1000 and len(x) == 250 and {b - a for a, b in zip(x, x[1:], strict=False)} == {4}
    )


def test_the_parts_of_a_step_are_milliseconds(tmp_path):
    speed = [
        {"step": 0, "sampling_seconds": 0.2, "teacher_seconds": 0.1},
        {"step": 10, "seconds_per_step": 0.5, "update_seconds": 0.2},
    ]
    write_run(tmp_path / "gkd", scores={10: 3.0}, speed=speed)
    chart = time_chart(group_runs(find_runs([tmp_path])[0]))
    assert chart.labels == ["gkd"]
    assert chart.parts == {"sampling": [200], "teacher": [100], "update": [200]}
    assert part_seconds([{"step": 1, "seconds_per_step": 0.5}]) is None
