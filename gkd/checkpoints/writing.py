"""New folders that appear whole under their final name, or not at all."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence

from etils import epath


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
        raise FileExistsError(f"{path} exists already: remove it or choose another name")
    temporary = final.parent / f".{final.name}.unfinished-{uuid.uuid4().hex[:8]}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if final.exists():
            final.rmdir()  # empty
        temporary.rename(final)
    except BaseException as error:
        temporary.rmtree(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FileExistsError):
            raise OSError(f"{path} could not be written, nothing is left of it: {error}") from error
        raise


def copy_files(source: epath.Path, names: Sequence[str], target: epath.Path) -> None:
    """Copies those of the named files that exist in `source`."""
    for name in names:
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())
