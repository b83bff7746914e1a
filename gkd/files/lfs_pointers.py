"""Recognises Git LFS pointers: small texts in place of the large files of a cloned repository."""

from __future__ import annotations

import pathlib
from typing import Any

from gkd.errors import InvalidFile

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1024  # by the specification of Git LFS


def refuse_lfs_pointer(path: Any) -> None:
    """Refuses a file that is the pointer of a Git LFS file instead of the file.

    Args:
      path: path of an existing file, a string or an object with `open`.

    Raises:
      ValueError: the file is a pointer.
    """
    path = pathlib.Path(path) if isinstance(path, str) else path
    with path.open("rb") as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST or not text.startswith(_FIRST_LINE):
        return
    raise InvalidFile(
        f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}, "
        "or download the repository with `hf download`"
    )
