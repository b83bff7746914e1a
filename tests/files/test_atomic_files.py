"""Writes that are whole or not at all, at a real limit of the file's size."""

import contextlib
import errno
import resource

import pytest

from gkd.files import atomic_files


@contextlib.contextmanager
def room_for(size):
    """No file may grow past `size` bytes: the system writes what fits, then refuses."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [40, 41, 59, 60, 61])
def test_a_row_that_does_not_fit_leaves_nothing_of_itself(tmp_path, room):
    path = tmp_path / "rows.jsonl"
    rows = [f"{number:018d}\n" for number in range(4)]  # of 19 bytes
    with room_for(room):
        with pytest.raises(OSError, match=r"cannot write .*rows.jsonl \(File too large\)") as error:
            for row in rows:
                atomic_files.append_lines(path, row)
        kept = path.read_text().splitlines(keepends=True)
        assert kept == rows[: room // 19]
        assert error.value.errno == errno.EFBIG
    atomic_files.append_lines(path, "next\n")  # there is room again
    assert path.read_text() == "".join([*kept, "next\n"])


@pytest.mark.parametrize("half", ["", "{", '{"step": 2', "x" * 70_000])
@pytest.mark.parametrize("whole", ["", "a\n", "a\nb\n"])
def test_what_a_kill_left_of_a_line_is_cut(tmp_path, whole, half):
    path = tmp_path / "rows.jsonl"
    path.write_text(whole + half)
    assert atomic_files.append_lines(path, "c\n") == len(whole) + 2
    assert path.read_text() == f"{whole}c\n"


def test_several_lines_are_whole_together(tmp_path):
    path = tmp_path / "rows.jsonl"
    with room_for(5), pytest.raises(OSError, match="cannot write"):
        atomic_files.append_lines(path, "ab\ncd\n")
    assert path.read_text() == ""


def test_a_replaced_file_is_the_old_or_the_new(tmp_path):
    path = tmp_path / "a.json"
    atomic_files.replace_file(path, "old")
    with room_for(2), pytest.raises(OSError, match=r"cannot write .*a.json \(File too large\)"):
        atomic_files.replace_file(path, "newer")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    atomic_files.replace_file(path, b"newer")
    assert path.read_text() == "newer"


def test_a_folder_or_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    for write in (atomic_files.append_lines, atomic_files.replace_file):
        with pytest.raises(OSError, match=r"cannot write .*rows.jsonl \(Is a directory\)"):
            write(tmp_path / "rows.jsonl", "a\n")
    with pytest.raises(OSError, match="cannot write .*No such file or directory"):
        atomic_files.append_lines(tmp_path / "no" / "rows", "a\n")


def test_a_users_file_beside_it_and_a_link_stay(tmp_path):
    (tmp_path / "a.json.tmp").write_text("mine")
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "a.json").symlink_to("real.json")
    atomic_files.replace_file(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").is_symlink() and (tmp_path / "real.json").read_text() == "new"
    assert (tmp_path / "a.json.tmp").read_text() == "mine"


def test_the_folder_of_an_output_is_made_unless_it_is_a_file(tmp_path):
    atomic_files.make_folder_of(tmp_path / "a/b/c.json")
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    for check in (atomic_files.check_folder_of, atomic_files.make_folder_of):
        with pytest.raises(NotADirectoryError, match="file is no folder: .*file/b/c.json cannot"):
            check(tmp_path / "file/b/c.json")
