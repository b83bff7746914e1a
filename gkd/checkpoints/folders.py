"""Where checkpoints lie: step folders, their small JSON items, and which step is the best."""

from __future__ import annotations

import json
import logging
import math
import sys
from typing import Any

from etils import epath

from gkd.errors import InvalidFile, MissingFile
from gkd.files.json_files import read_json

CHECKPOINTS_FOLDER = "checkpoints"
STATE_ITEM = "state"
DATA_ITEM = "data"
DESCRIPTION_ITEM = "description"
_JSON_FILES = {DATA_ITEM: "metadata", DESCRIPTION_ITEM: "metadata", "metrics": "metrics"}


def silence_orbax() -> None:
    """Keeps Orbax's own log lines off the console: what it cannot do it raises as well."""
    logger = logging.getLogger("absl")
    if _is_not_orbax not in logger.filters:
        logger.addFilter(_is_not_orbax)
        _silence_unfinished_writes()


def _silence_unfinished_writes() -> None:
    """Keeps off the console what TensorStore reports of writes after a save has failed: Orbax has
    raised the first of their errors, and closed the loop that was to hear of the others.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.msg)
    previous = sys.excepthook

    def hook(kind, error, trace):
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            previous(kind, error, trace)

    sys.excepthook = hook


def _is_not_orbax(record: logging.LogRecord) -> bool:
    path = record.pathname.replace("\\", "/")
    return "/orbax/" not in path and "/clu/asynclib" not in path


def step_numbers(directory: epath.PathLike) -> list[int]:
    """Returns a checkpoints folder's steps, ascending; unfinished ones have other names."""
    directory = epath.Path(directory)
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if _is_step_name(name))


def _is_step_name(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def read_item(folder: epath.PathLike, item: str) -> dict[str, Any]:
    """Reads one of a step folder's JSON items: data, description or metrics.

    Args:
      folder: a step folder.
      item: the item's name.

    Returns:
      The dictionary that was saved.

    Raises:
      ValueError: it is damaged.
      OSError: it is missing.
    """
    return read_json(epath.Path(folder) / item / _JSON_FILES[item], dict)


def write_item(folder: epath.PathLike, item: str, value: dict[str, Any]) -> None:
    """Writes one of a step folder's JSON items, as `read_item` reads it."""
    place = epath.Path(folder) / item
    place.mkdir()
    (place / _JSON_FILES[item]).write_text(json.dumps(value))


def better_or_equal(value: float, other: float, mode: str) -> bool:
    """Whether `value` is at least as good as `other`."""
    return value >= other if mode == "max" else value <= other


def find_best_step(directory: epath.PathLike, metric: str, mode: str) -> int | None:
    """Returns the step with the best finite `metric`, the newest of equals; None if none has it.

    Args:
      directory: a checkpoints folder.
      metric: a key of the metrics that were saved with the steps.
      mode: whether a larger ("max") or a smaller ("min") value is better.
    """
    best_step, best_value = None, math.nan
    for step in step_numbers(directory):
        try:
            value = read_item(epath.Path(directory) / str(step), "metrics").get(metric, math.nan)
        except (OSError, ValueError):  # damaged: restoring it reports that
            continue
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if is_number and (best_step is None or better_or_equal(value, best_value, mode)):
            best_step, best_value = step, value
    return best_step


def locate_steps(path: epath.PathLike) -> tuple[epath.Path, list[int]]:
    """Finds the checkpoints that `path` means.

    Args:
      path: a run directory, its checkpoints folder, or one step folder.

    Returns:
      The checkpoints folder, and the steps meant, ascending (one for a step folder).

    Raises:
      FileNotFoundError: `path` does not exist.
      ValueError: it holds no checkpoint.
    """
    path = epath.Path(path).resolve()  # Orbax reads absolute paths only
    if not path.exists():
        raise MissingFile(f"checkpoint {path}: there is no such folder")
    if (path / STATE_ITEM).is_dir() and _is_step_name(path.name):
        return path.parent, [int(path.name)]
    for directory in (path, path / CHECKPOINTS_FOLDER):
        if steps := step_numbers(directory):
            return directory, steps
    raise InvalidFile(
        f"{path} is not a checkpoint: give a run directory, its {CHECKPOINTS_FOLDER} folder "
        "or one step folder (a whole number) of this program"
    )
