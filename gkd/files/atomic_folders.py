"""New folders that appear whole under their final name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator, Sequence

from etils import epath

from gkd.errors import ExistingFile, StorageError

_UNFINISHED = ".unfinished-"
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """Gives a temporary folder beside `path` to write into, and renames it when all went well.

    Args:
      path: the final folder; it must not exist or be empty.

    Yields:
      The temporary folder.

    Raises:
      FileExistsError: there is something at `path`.
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
        reason = isinstance(error, Exception) and storage_reason(error)
        if reason or (isinstance(error, OSError) and not isinstance(error, FileExistsError)):
            raise StorageError(
                f"{path} could not be written, nothing is left of it: {reason or error}"
            ) from error
        raise


def storage_reason(error: BaseException | None) -> str | None:
    """The reason that lies with the storage ("No space left on device"), None where none does.

    Libraries (TensorStore, TensorFlow) have errors of their own, which only quote the system's.
    """
    while error is not None:
        for number in _STORAGE_ERRORS:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def remove_unfinished(path: epath.PathLike) -> None:
    """Removes what killed processes left of `new_folder(path)`; no other may be writing it."""
    path = epath.Path(path)
    if path.parent.is_dir():
        for left in path.parent.iterdir():
            if left.name.startswith(f".{path.name}{_UNFINISHED}"):
                left.rmtree(missing_ok=True)


def copy_files(source: epath.Path, names: Sequence[str], target: epath.Path) -> None:
    """Copies those of the named files that exist in `source`."""
    for name in names:
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())
