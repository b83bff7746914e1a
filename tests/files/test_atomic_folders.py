"""Folders that appear whole or not at all."""

import errno
import os

import pytest

from gkd.errors import InvalidFile, MissingFile
from gkd.files.atomic_folders import new_folder, remove_unfinished, storage_reason


def test_a_folder_appears_when_all_is_written(tmp_path):
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("whole")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "file").read_text() == "whole"
    assert os.listdir(tmp_path / "a") == ["b"]
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize(
    ("error", "seen", "message"),
    [
        (OSError(errno.ENOSPC, "full"), OSError, "was removed: No space left on device"),
        (RuntimeError("w: Read-only file system [x]"), OSError, "Read-only file system"),
        (KeyError("a mistake"), KeyError, "a mistake"),
    ],
)
def test_a_failure_leaves_nothing(tmp_path, error, seen, message):
    with pytest.raises(seen, match=message), new_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_the_reason_is_found_behind_other_errors():
    outer = ValueError("writing failed")
    outer.__cause__ = OSError(errno.EDQUOT, "quota")
    assert storage_reason(outer) == os.strerror(errno.EDQUOT)
    assert storage_reason(ValueError("another")) is None


def test_what_a_killed_process_left_is_removed(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "a") as folder:
        name = folder.name
        raise KeyError
    (tmp_path / name).mkdir()
    (tmp_path / ".other").mkdir()
    remove_unfinished(tmp_path / "a")
    assert os.listdir(tmp_path) == [".other"]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/source/weights"),
        InvalidFile("/source/weights is damaged"),
        MissingFile("/source/weights: there is no such file"),
    ],
)
def test_a_fault_of_the_source_is_not_called_one_of_the_target(tmp_path, error):
    with pytest.raises(type(error)) as seen, new_folder(tmp_path / "a"):
        raise error
    assert seen.value is error and os.listdir(tmp_path) == []
