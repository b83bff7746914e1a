"""Evaluations that measure different rows are not averaged."""

import json

from gkd.report.arms import group_runs
from gkd.report.result_charts import result_charts
from gkd.report.run_records import find_runs
from gkd.report.tables import evaluations_table
from gkd.report.training_charts import teacher_levels
from tests.report.run_folders import write_run


def evaluated(folder, name, rows=100, task="sums", split="validation", **metrics):
    record = {
        "metrics": metrics, "signatures": {}, "task": task, "split": split, "examples": rows,
        "by_position": {"free_running": {"forward_kl": [metrics["student"]["greedy"]["bleu"]]}},
        "teacher": {"step_folder": metrics.pop("of", "runs/teacher/checkpoints/9")},
    }  # fmt: skip
    (folder / f"evaluation-{name}.json").write_text(json.dumps(record))


def student(score):
    return {"greedy": {"bleu": score}}


def rows_of(folder):
    return [list(row) for row in evaluations_table(group_runs(find_runs([folder])[0])).rows]


def test_two_evaluations_of_a_run_are_two_rows(tmp_path):
    run = write_run(tmp_path / "gkd", scores={9: 1.0})
    evaluated(run, "references", student=student(30.0))
    evaluated(run, "imitation", student=student(10.0))
    assert rows_of(tmp_path) == [
        ["gkd", "imitation: greedy", "10.00"], ["gkd", "references: greedy", "30.00"],
    ]  # fmt: skip
    charts = result_charts(group_runs(find_runs([tmp_path])[0]), ["bleu"])
    labels = {line.label: list(line.y) for line in charts[0].lines}
    assert labels == {
        "gkd, imitation: free running": [10.0], "gkd, references: free running": [30.0],
    }  # fmt: skip


def test_evaluations_of_one_name_on_other_rows_are_told_apart(tmp_path):
    for seed, rows in enumerate((100, 100, 20)):
        run = write_run(tmp_path / f"gkd/{seed}", scores={9: 1.0}, seed=seed)
        evaluated(run, "test", rows, split="test", student=student(10.0 * (seed + 1)))
    assert rows_of(tmp_path) == [
        ["all runs", "test, 100 rows of sums, test: greedy", "15.00 ± 63.53"],
        ["all runs", "test, 20 rows of sums, test: greedy", "30.00"],
    ]


def test_each_teacher_has_its_own_score(tmp_path):
    for name, score in (("a", 30.0), ("b", 50.0)):
        settings = {"teacher": f"'runs/{name}'", "on_policy_fraction": "1.0"}
        run = write_run(tmp_path / name, scores={0: 1.0, 9: 2.0}, settings=settings)
        (run / "teacher_evaluation.json").write_text(json.dumps({"metrics": {"bleu": score}}))
        evaluated(run, "test", student=student(1.0), teacher=student(score), of=f"runs/{name}/9")
    arms = group_runs(find_runs([tmp_path])[0])
    assert teacher_levels(arms, "bleu") == {"teacher runs/a": 30, "teacher runs/b": 50}
    assert rows_of(tmp_path)[2:] == [
        ["teacher runs/a/9", "greedy", "30.00"], ["teacher runs/b/9", "greedy", "50.00"],
    ]  # fmt: skip
