"""Runs as they lie on disk: whole, unfinished, damaged, foreign."""

import pytest

from gkd.report.run_records import find_runs, read_run
from gkd.runs.lease import Lease, run_prefix
from tests.report.run_folders import write_run


def test_runs_are_found_at_any_depth_with_their_settings_and_scores(tmp_path):
    write_run(tmp_path / "b" / "1", scores={0: 10.0, 50: 30.0}, seed=7)
    write_run(tmp_path / "a", scores={0: 5.0})
    (tmp_path / "a" / "checkpoints").mkdir()
    write_run(tmp_path / "a" / "checkpoints" / "no_run", scores={0: 1.0})
    records, problems = find_runs([tmp_path])
    assert [run.name for run in records] == ["a", "b/1"] and problems == []
    assert records[1].seed == 7 and records[1].train_steps == 50
    assert records[1].series("evaluation/bleu") == {0: 10.0, 50: 30.0}
    assert records[1].last("evaluation/bleu") == 30.0 and records[1].last("train/loss") is None
    twice, _ = find_runs([tmp_path / "b", tmp_path])
    assert [run.path.name for run in twice] == ["1", "a"]


def test_the_clock_adds_the_steps_of_every_interval(tmp_path):
    speed = [{"step": 10, "seconds_per_step": 2.0}, {"step": 30, "seconds_per_step": 0.5}]
    run = read_run(write_run(tmp_path / "a", scores={30: 1.0}, speed=speed), "a")
    assert [run.seconds_at(step) for step in (0, 5, 10, 20, 30)] == [0, 10, 20, 25, 30]
    assert run.seconds_at(31) is None


def test_the_state_follows_the_summary_and_the_lease(tmp_path):
    complete = write_run(tmp_path / "a", scores={10: 1.0})
    stopped = write_run(tmp_path / "b", scores={10: 1.0}, complete=False)
    assert read_run(complete, "a").state == "complete"
    longer = write_run(tmp_path / "c", scores={10: 1.0}, settings={"train_steps": "20"})
    assert read_run(longer, "c").state == "stopped"
    assert read_run(stopped, "b").state == "stopped"
    with Lease(run_prefix(stopped), "a run"):
        assert read_run(stopped, "b").state == "running"


@pytest.mark.parametrize(
    "file, content, reason",
    [
        ("metrics.jsonl", b'{"step": 1}\nrubbish\n{"step": 2}\n', "not a row of JSON"),
        ("metrics.jsonl", b'{"step": 1, "a": []}\n', "a is "),
        ("launches.jsonl", b"\xff\n", "no launch of a run"),
        ("launches.jsonl", b'{"bindings": {"train.train.seed": "]"}}\n', "launches.jsonl"),
        ("summary.json", b"[1]", "summary.json"),
        ("samples.jsonl", b'{"step": 1, "rows": ["x"]}\n', "rows are no objects"),
        ("speed.jsonl", b"[]\n{}\n", "speed.jsonl"),
        ("evaluation-all.json", b'{"metrics": 3}', "evaluation-all.json"),
        ("teacher_evaluation.json", b"{}", "holds no metrics"),
        ("speed.jsonl", b'{"step": 1, "seconds_per_step": []}\n', "speed.jsonl:1 holds something"),
        ("summary.json", b'{"steps": 50, "parameters": {}}', "summary.json: parameters is {}"),
        ("launches.jsonl", b'{"bindings": {}, "checkpoints": 3}\n', "checkpoints is 3"),
        ("evaluation-all.json", b'{"metrics": {}, "signatures": []}', "signatures is []"),
    ],
)
def test_a_damaged_file_is_one_line_and_the_rest_is_read(tmp_path, file, content, reason):
    folder = write_run(tmp_path / "run", scores={0: 10.0, 50: 30.0})
    (folder / file).write_bytes(content)
    records, problems = find_runs([tmp_path])
    assert len(problems) == 1 and reason in problems[0] and "\n" not in problems[0]
    assert len(records) == 1
    if file != "metrics.jsonl":
        assert records[0].last("evaluation/bleu") == 30.0


def test_a_folder_without_runs_is_one_line(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("x")
    records, problems = find_runs([tmp_path / "foreign", tmp_path / "none"])
    assert records == []
    assert [line.rpartition("/")[2] for line in problems] == [
        "foreign holds no run: left out", "none is no folder: left out",
    ]  # fmt: skip


def test_numbers_without_a_value_are_no_points_of_a_curve(tmp_path):
    scores = {0: 1.0, 10: float("inf"), 20: 10**400, 30: 2.0}
    record = {"metrics": {"student": {"greedy": {"bleu": 10**400, "rouge2": [], "ok": 1}, "x": 3}}}
    folder = write_run(tmp_path / "a", scores=scores, evaluation=record)
    text = (folder / "metrics.jsonl").read_text().replace(": Infinity", ': "Infinity"')
    (folder / "metrics.jsonl").write_text(text)
    run = read_run(folder, "a")
    assert run.problems == () and run.series("evaluation/bleu") == {0: 1.0, 30: 2.0}
    assert run.evaluations["test"]["metrics"]["student"] == {"greedy": {"ok": 1}, "x": {}}


def test_runs_behind_links_are_found_once(tmp_path):
    run = write_run(tmp_path / "elsewhere/run", scores={9: 10.0})
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/linked").symlink_to(run)
    (run / "loop").symlink_to(tmp_path / "sweep")
    assert [record.name for record in find_runs([tmp_path / "sweep"])[0]] == ["linked"]
