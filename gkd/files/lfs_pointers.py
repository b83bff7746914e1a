"""Recognises Git LFS pointers: small texts in place of the large files of a cloned repository."""

from __future__ import annotations

from etils import epath

from gkd.errors import InvalidFile

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1024  # by the specification of Git LFS


def refuse_lfs_pointer(path: epath.PathLike) -> None:
    """Refuses a file that is the pointer of a Git LFS file instead of the file.

    Args:
      path: path of an existing file.

    Raises:
      ValueError: the file is a pointer.
    """
    path = epath.Path(path)
    if path.stat().length > _LONGEST:
        return
    with path.open("rb") as file:
        if file.read(len(_FIRST_LINE)) != _FIRST_LINE:
            return
    raise InvalidFile(
        f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}, "
        "or download the repository with `hf download`"
    )
