"""The number that is cited and the model that is exported are of the same step of a run."""

import json
import pathlib

import pytest

from gkd.checkpoints import folders, hashes
from gkd.cli import command_line
from tests.paths import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    """Steps 2 and 4 of a run, of which step 2 has the better metric."""
    folder = tmp_path_factory.mktemp("run") / "run"
    settings = ["TRAIN_STEPS=4", "EVALUATE_EVERY=2", "CHECKPOINT_EVERY=2", f'MODEL_DIR="{folder}"']
    options = [f"--gin.{value}" for value in settings]
    assert command_line.main(["train", f"--gin_file={TINY}", *options]) == 0
    for step, score in ((2, 50.0), (4, 25.0)):
        place = folder / "checkpoints" / str(step)
        metrics = folders.read_item(place, "metrics") | {"exact_match": score}
        (place / "metrics/metrics").write_text(json.dumps(metrics))
        hashes.write_hashes(place)
    return folder


@pytest.mark.parametrize(
    ("step", "expected", "why"),
    [
        (None, "2", "step 2, the best by exact_match"),
        ("newest", "4", "step 4, its newest"),
        (4, "4", "step 4, as asked for"),
    ],
)
def test_evaluate_infer_and_convert_read_the_same_step(step, expected, why, run, tmp_path, capfd):
    given = [] if step is None else [f"--step={step}"]
    result = tmp_path / "result.json"
    override = [] if step is None else [f"--gin.CHECKPOINT_STEP={step!r}"]
    options = [f'--gin.MODEL_DIR="{run}"', f'--gin.evaluate.evaluate.output="{result}"']
    options += ["--gin.EVALUATION_EXAMPLES=2", *override]
    assert command_line.main(["evaluate", f"--gin_file={TINY}", *options]) == 0
    student = json.loads(result.read_text())["student"]
    assert (pathlib.Path(student["step_folder"]).name, student["chosen"]) == (expected, why)
    (tmp_path / "in.txt").write_text("Tom has 3 pens.\n")
    output = tmp_path / "out.jsonl"
    files = [f"--input={tmp_path / 'in.txt'}", f"--output={output}", "--max_length=2"]
    assert command_line.main(["infer", f"--model={run}", *files, *given]) == 0
    settings = json.loads(pathlib.Path(f"{output}.settings.json").read_text())["settings"]
    assert pathlib.Path(settings["model"]).name == expected
    target = str(tmp_path / "exported")
    assert command_line.main(["convert", str(run), target, *given]) == 0
    captured = capfd.readouterr()
    assert captured.out.count(why) == 2 and captured.err.count(why) == 1


def test_what_is_no_step_is_one_line(run, tmp_path, capfd):
    files = ["--input=in.txt", f"--output={tmp_path / 'out.jsonl'}"]
    assert command_line.main(["infer", f"--model={run}", *files, "--step=latest"]) == 2
    message = "step is 'latest': use a whole number, 'best_or_newest', 'best', 'newest' or None"
    assert message in capfd.readouterr().err
    assert command_line.main(["convert", str(run), str(tmp_path / "x"), "--step=latest"]) == 2
    assert message in capfd.readouterr().err
