"""Step folders: which names are steps, and which step is the best."""

import json

import pytest

from gkd.checkpoints import folders


def make_step(directory, step, metrics=None):
    (directory / str(step) / folders.STATE_ITEM).mkdir(parents=True)
    if metrics is not None:
        folders.write_item(directory / str(step), "metrics", metrics)
    return directory / str(step)


def test_only_whole_numbers_as_they_are_written_are_steps(tmp_path):
    for name in ("10", "9", "07", "-1", "1.5", "٣", "²", "12.orbax-checkpoint-tmp", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert folders.step_numbers(tmp_path) == [9, 10]
    assert folders.step_numbers(tmp_path / "none") == []
    (tmp_path / folders.IN_USE_FOLDER / "²").mkdir(parents=True)
    assert folders.steps_in_use(tmp_path) == set()


def test_the_best_step_is_the_newest_of_the_best_finite_values(tmp_path):
    for step, value in ((1, 3.0), (2, 7.0), (3, 7.0), (4, "NaN"), (5, 1.0), (6, None)):
        make_step(tmp_path, step, {"bleu": value})
    (make_step(tmp_path, 7) / "metrics").mkdir()
    assert folders.find_best_step(tmp_path, "bleu", "max") == 3
    assert folders.find_best_step(tmp_path, "bleu", "min") == 5
    assert folders.find_best_step(tmp_path, "rouge", "max") is None


def test_a_run_its_checkpoints_and_one_step_name_the_same_folder(tmp_path):
    directory = tmp_path / folders.CHECKPOINTS_FOLDER
    make_step(directory, 4)
    make_step(directory, 8)
    assert folders.locate_steps(tmp_path) == (directory, [4, 8])
    assert folders.locate_steps(directory) == (directory, [4, 8])
    assert folders.locate_steps(directory / "4") == (directory, [4])
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        folders.locate_steps(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is not a checkpoint: give a run directory"):
        folders.locate_steps(tmp_path / "empty")


def test_an_item_comes_back_from_plain_json(tmp_path):
    folders.write_item(tmp_path, folders.DATA_ITEM, {"0": "é"})
    assert json.loads((tmp_path / "data" / "metadata").read_text()) == {"0": "é"}
    assert folders.read_item(tmp_path, folders.DATA_ITEM) == {"0": "é"}


def test_the_runs_of_a_sweeps_row_are_no_steps(tmp_path):
    """Its folders are named by the seeds."""
    for seed in "012":
        (tmp_path / "gkd" / seed / "checkpoints/4/state").mkdir(parents=True)
    assert folders.step_numbers(tmp_path / "gkd") == []
    assert folders.step_numbers(tmp_path / "gkd/1/checkpoints") == [4]
    with pytest.raises(ValueError, match="gkd is not a checkpoint: give a run directory"):
        folders.locate_steps(tmp_path / "gkd")


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/4"])
def test_the_run_of_a_path_may_have_a_number_as_its_name(tmp_path, below):
    assert folders.run_of(tmp_path / "gkd/0" / below) == tmp_path / "gkd/0"
