"""Writes that are whole or not at all: appended lines and replaced files, errors in one line.

A full disk, a quota or a lost mount raises an OSError that names the file; what was there before
stays as it was. Every verb's own files are written through here.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from gkd.errors import StorageError
from gkd.parallel import processes

_TAIL_BYTES = 1 << 16


def append_lines(path: pathlib.Path, text: str | bytes, sync: bool = False) -> int:
    """Appends whole lines to a file, made where it does not exist.

    A line that an interrupted write left unfinished at the file's end is cut off first, so that
    two lines never become one. Where writing fails, the file gets its former length back.

    Args:
      path: the file.
      text: one or more lines, the last with its newline.
      sync: whether to return only when the lines are on the disk itself, so that they survive a
        crash of the machine (a crash of the process loses nothing either way).

    Returns:
      The file's new length in bytes.

    Raises:
      OSError: the lines could not be written; the message names the file.
    """
    content = text.encode() if isinstance(text, str) else text
    before: int | None = None
    try:
        with open(path, "ab", buffering=0) as file:
            before = cut_unfinished_line(path)
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


def cut_unfinished_line(path: pathlib.Path) -> int:
    """Cuts what follows a file's last newline: a line whose writing was interrupted.

    Returns:
      The length of the file's whole lines in bytes; 0 where there is no file.
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
    """Writes a file whole, in place of the one that is there.

    The content is on disk before it gets the file's name: a crash of the machine leaves the old
    file or the new one, never an empty one.

    Args:
      path: the file.
      content: all of it; text is UTF-8.

    Raises:
      OSError: it could not be written, the old file is still there; the message names the file.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path beside `path` to write to, and renames it when that went well.

    Raises:
      OSError: writing failed; nothing is left of it, and the message names `path`.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: pathlib.Path, error: OSError) -> StorageError:
    """The error that says which file could not be written, and why."""
    reason = error.strerror or str(error)
    made = StorageError(
        f"cannot write {path} ({reason}): put that right, and the same command continues"
    )
    made.errno = error.errno
    return made


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all; the job's first process does.

    Args:
      path: the file.
      value: anything that JSON has.

    Raises:
      OSError: it cannot be written; what was there before stays.
    """
    if processes.is_primary_process():
        replace_file(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
