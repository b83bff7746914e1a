"""Atomic writes of files: replaced as a whole, or extended by whole lines.

A full disk, a quota or a lost mount raises an OSError that names the file, and the former content
stays. All verbs write their files through this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from gkd.errors import NotAFolder, StorageError
from gkd.parallel import processes

_TAIL_BYTES = 1 << 16


def append_lines(path: pathlib.Path, text: str | bytes, sync: bool = False) -> int:
    """Appends whole lines to a file, which is created if missing.

    An unfinished line that an interrupted write left at the end of the file is removed first, so
    that two lines never merge. If writing fails, the file is truncated to its former length.

    Args:
      path: path of the file.
      text: one or more lines, the last one with its newline.
      sync: return only once the lines are on the disk itself, so that they survive a crash of the
        machine (a crash of the process loses nothing either way).

    Returns:
      The file's new length in bytes.

    Raises:
      OSError: the lines could not be written; the message names the file.
    """
    content = text.encode() if isinstance(text, str) else text
    before: int | None = None
    try:
        with open(path, "ab", buffering=0) as file:
            before = remove_unfinished_line(path)
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) or 0 :]
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        if before is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, before)
        raise cannot_write(path, error) from error
    return before + len(content)


def remove_unfinished_line(path: pathlib.Path) -> int:
    """Removes the content after the last newline of a file: a line whose write was interrupted.

    Args:
      path: path of the file, which may be missing.

    Returns:
      Length of the file's whole lines in bytes; 0 if there is no file.
    """
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
    if end < size:
        os.truncate(path, end)
    return end


def replace_file(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file atomically, replacing any former one.

    The content is on disk before it gets the file's name: a crash of the machine leaves the old
    file or the new one, never an empty one.

    Args:
      path: path of the file.
      content: the whole content; text is encoded as UTF-8.

    Raises:
      OSError: the file could not be written and the old one is unchanged; the message names it.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` to write to, and renames it on success.

    Args:
      path: path of the final file.

    Raises:
      OSError: writing failed; the temporary file is removed, and the message names `path`.
    """
    place = path.resolve()  # a link stays a link
    temporary = place.with_name(f".{place.name}.being_written")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def check_folder_of(path: pathlib.Path) -> None:
    """Checks that a file's folder exists, or can be made by `make_folder_of`.

    Args:
      path: path of a file that is to be written.

    Raises:
      NotADirectoryError: what would be one of its folders is a file.
    """
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir():
        raise NotAFolder(f"{folder} is no folder: {path} cannot be written there")


def make_folder_of(path: pathlib.Path) -> None:
    """Makes the folder of a file that is to be written, with its parents.

    Args:
      path: path of the file.

    Raises:
      OSError: the folder could not be made; the message names it.
    """
    check_folder_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error


def cannot_write(path: pathlib.Path, error: OSError) -> StorageError:
    """Builds the error that names a file that could not be written, and the reason.

    Args:
      path: path of the file.
      error: the system's error.
    """
    reason = error.strerror or str(error)
    made = StorageError(
        f"cannot write {path} ({reason}): put that right, and the same command continues"
    )
    made.errno = error.errno
    return made


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically, in the primary process of the job only.

    Args:
      path: path of the file.
      value: any value that JSON can represent.

    Raises:
      OSError: the file could not be written, and the old one is unchanged.
    """
    if processes.is_primary_process():
        replace_file(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
