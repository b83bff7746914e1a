"""Small files of a run that are damaged: mended and reported, or one line with the name."""

import json
import shutil

import pytest

from gkd.cli import command_line
from gkd.runs import run_directory
from tests.paths import TINY

SMALL = (
    "TRAIN_STEPS=2",
    "EVALUATE_EVERY=0",
    "EVALUATION_EXAMPLES=8",
    "experiment.Execution.tensorboard=False",
)


def train(place, *overrides):
    values = (f"MODEL_DIR='{place}'", *SMALL, *overrides)
    return command_line.main(
        ["train", f"--gin_file={TINY}", *(f"--gin.{value}" for value in values)]
    )


def method_of(folder):
    return "DIVERGENCE=@divergences.forward_kl", f"TEACHER='{folder / 'teacher'}'"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_device):
    """A finished run with a teacher, and the function that starts it again."""
    folder = tmp_path_factory.mktemp("runs")
    method = method_of(folder)
    assert train(folder / "teacher") == 0
    assert train(folder / "student", *method) == 0
    return folder / "student", lambda: train(folder / "student", *method)


@pytest.mark.parametrize(
    "content", [b"", b'{"teacher": "', b"[]", b"{}", b"\xff", b'{"teacher": 3}']
)
def test_which_teacher_it_was_is_not_guessed(runs, content, capfd):
    student, again = runs
    path = student / "teacher.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    assert again() == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"gkd: error: {path}") and "delete it to learn from" in error
    path.write_bytes(whole)


@pytest.mark.parametrize("kinds", [("empty", "cut"), ("cut", "other")])
def test_what_can_be_measured_again_is_mended_and_reported(runs, kinds, capfd):
    student, again = runs
    paths = [student / "summary.json", student / "teacher_evaluation.json"]
    whole = [json.loads(path.read_text()) for path in paths]
    for path, kind in zip(paths, kinds, strict=True):
        text = path.read_text()
        path.write_text({"empty": "", "cut": text[: len(text) // 2], "other": '{"a": 1}'}[kind])
    assert again() == 0
    errors = capfd.readouterr().err
    same = ("steps", "evaluation", "parameters", "about", "metrics", "outputs")
    assert "Traceback" not in errors and errors.count("it is made again") == 2
    for path, before in zip(paths, whole, strict=True):
        assert f"{path}" in errors
        mended = json.loads(path.read_text())
        assert {n: mended.get(n) for n in same} == {n: before.get(n) for n in same}


def test_a_teacher_is_measured_again_where_what_is_measured_changes(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    path = run / "teacher_evaluation.json"
    before = path.read_bytes()
    same = method_of(runs[0].parent)
    assert train(run, *same) == 0 and path.read_bytes() == before
    reward = "REWARD=@reward_functions.exact_number"
    assert train(run, *same, reward, "LAMBDA=1.0", "ALLOW_CHANGES=True") == 0
    found = json.loads(path.read_text())["metrics"]
    assert found["reward"] == found["exact_match"]
    assert "reward" not in json.loads(before)["metrics"]


def test_metrics_that_were_deleted_are_reported(runs, capfd):
    student, again = runs
    path = student / "metrics.jsonl"
    whole = path.read_bytes()
    path.unlink()
    assert again() == 0
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "metrics.jsonl" in line]
    assert line.startswith("gkd: warning: ") and " has 0 rows " in line
    path.write_bytes(whole)
    assert again() == 0
    assert "metrics.jsonl" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "row", ["junk", "{}", "[]", "", '{"bindings": 3}', '{"bindings": {}, "continues_from": "a"}']
)
def test_junk_among_the_launches_is_named(tmp_path, row):
    path = tmp_path / "launches.jsonl"
    path.write_text(f'{{"bindings": {{}}}}\n{row}\n{{"bindings": {{}}}}\n{{"half')
    with pytest.raises(
        ValueError, match="launches.jsonl:2.* the line is no launch of a run: remove"
    ) as error:
        run_directory.read_launches(tmp_path)
    assert "\n" not in str(error.value)
    path.write_text('{"bindings": {}}\n{"half')  # a kill may leave that
    assert run_directory.read_launches(tmp_path) == [{"bindings": {}}]
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="launches.jsonl is a folder"):
        run_directory.read_launches(tmp_path)
