"""gs:// paths: in gin files, overrides, options and the environment, with a folder as the mount."""

import json
import pathlib

import pytest

from gkd.cli import command_line
from gkd.configuration import buckets
from gkd.infer import task_inputs
from tests.paths import TINY


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """The folder that stands in for the mounts; it has one for the bucket `b`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKD_BUCKETS", str(tmp_path / "mounts"))
    (tmp_path / "mounts" / "b").mkdir(parents=True)
    return tmp_path / "mounts"


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("gs://b/runs/a", "{}/b/runs/a"), ("gs://b", "{}/b/"), ("runs/a", "runs/a"), ("", ""),
        ("/gs://b/a", "/gs://b/a"), ("~/runs/a", "/home/me/runs/a"), ("a~/b", "a~/b"),
    ],
)  # fmt: skip
def test_a_path_is_below_the_mount(mount, monkeypatch, path, want):
    monkeypatch.setenv("HOME", "/home/me")
    assert buckets.local(path) == want.format(mount)


@pytest.mark.parametrize("path", ["gs://b//etc/x", "gs://b/../../x", "gs://b/a/.."])
def test_a_path_does_not_leave_its_bucket(mount, path):
    with pytest.raises(ValueError, match=f"{path} is no place in a bucket"):
        buckets.local(path)


def test_nested_texts_are_found(mount):
    value = {"a": ["gs://b/x", 1], "c": ("gs://b/y", None)}
    assert buckets.local_in(value) == {"a": [f"{mount}/b/x", 1], "c": (f"{mount}/b/y", None)}


def test_a_run_lies_in_the_bucket_and_infer_reads_it_there(mount):
    options = ["TRAIN_STEPS=2", "EVALUATION_EXAMPLES=8", "experiment.Execution.tensorboard=False"]
    options += ["MODEL_DIR='gs://b/runs/a'"]
    overrides = [f"--gin.{text}" for text in options]
    assert command_line.main(["train", f"--gin_file={TINY}", *overrides]) == 0
    assert json.loads((mount / "b/runs/a/summary.json").read_text())["steps"] == 2
    (mount / "b/in.txt").write_text("1 2 3\n")
    arguments = ["--model=gs://b/runs/a", "--input=gs://b/in.txt", "--output=gs://b/out.jsonl"]
    sizes = ["--input_length=8", "--max_length=4", "--batch_size=8"]
    assert command_line.main(["infer", *arguments, *sizes]) == 0
    assert json.loads((mount / "b/out.jsonl").read_text())["input"] == "1 2 3"
    assert not list(pathlib.Path().glob("gs:*"))


def test_the_data_of_a_task_may_be_in_a_bucket(mount, monkeypatch):
    (mount / "b/train.jsonl").write_text('{"input": "x", "target": "y"}\n')
    monkeypatch.setenv("GKD_DATA", "gs://b")
    options = ["FILES={'train': 'train.jsonl'}", "VOCABULARY=@vocabularies.byte_level()"]
    buckets.translate_environment()
    file = "configs/tasks/local_text.gin"
    assert task_inputs.open_split(file, options, "train", False).inputs == [b"x"]
    monkeypatch.delenv("GKD_DATA")
    options += ["DATA='gs://b'"]
    assert task_inputs.open_split(file, options, "train", False).inputs == [b"x"]


def test_an_unmounted_bucket_is_one_line(mount, monkeypatch, capsys):
    arguments = ["train", f"--gin_file={TINY}", "--gin.MODEL_DIR='gs://other/a'"]
    assert command_line.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "bucket 'other' is not mounted" in error
    assert f"{mount}/other is no folder" in error
    monkeypatch.delenv("GKD_BUCKETS")
    assert command_line.main(arguments) == 1
    assert "GKD_BUCKETS is not set" in capsys.readouterr().err
    # What is overridden is not looked for.
    arguments += ["--gin.MODEL_DIR='a'", "--gin.DRY_RUN=True"]
    assert command_line.main(arguments) == 0
