"""Atomic creation of folders: a new folder appears complete under its final name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator, Sequence

from etils import epath

from gkd.errors import ExistingFile, StorageError, UserError

_UNFINISHED = ".unfinished-"
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary folder beside `path` to write into, and renames it on success.

    Args:
      path: path of the final folder, which must be missing or empty.

    Yields:
      The temporary folder.

    Raises:
      FileExistsError: `path` exists and is not empty.
      OSError: writing failed, e.g. the disk is full; the temporary folder is removed.
    """
    path = epath.Path(path)
    final = path if "://" in str(path) else path.resolve()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise ExistingFile(f"{path} exists already: remove it or choose another name")
    temporary = final.parent / f".{final.name}{_UNFINISHED}{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if final.exists():
            final.rmdir()  # empty
        temporary.rename(final)
    except BaseException as error:
        temporary.rmtree(missing_ok=True)
        if not isinstance(error, Exception) or not _is_of(error, temporary):
            raise
        raise StorageError(
            f"{path} could not be written and was removed: {storage_reason(error) or error}"
        ) from error


def _is_of(error: Exception, folder: epath.Path) -> bool:
    """Returns True if an error is of the storage of a folder, not of what is copied into it."""
    name = getattr(error, "filename", None)
    if name is not None and not str(name).startswith(str(folder)):
        return False
    if isinstance(error, UserError | FileExistsError):
        return isinstance(error, StorageError)
    return isinstance(error, OSError) or storage_reason(error) is not None


def storage_reason(error: BaseException | None) -> str | None:
    """Finds the storage fault that caused an error.

    Libraries (TensorStore, TensorFlow) raise errors of their own, which only quote the system's.

    Args:
      error: any exception, with its chain of causes.

    Returns:
      The system's text, e.g. "No space left on device"; None if the cause is another one.

    >>> storage_reason(ValueError("write failed: No space left on device [code 5]"))
    'No space left on device'
    """
    while error is not None:
        for number in _STORAGE_ERRORS:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def remove_unfinished(path: epath.PathLike) -> None:
    """Removes temporary folders of `new_folder(path)` that killed processes left behind.

    Args:
      path: path of the final folder; no other process may be writing it.
    """
    path = epath.Path(path)
    if path.parent.is_dir():
        for left in path.parent.iterdir():
            if left.name.startswith(f".{path.name}{_UNFINISHED}"):
                left.rmtree(missing_ok=True)


def copy_files(source: epath.Path, names: Sequence[str], target: epath.Path) -> None:
    """Copies the named files from `source` to `target`, leaving out missing ones."""
    for name in names:
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())
