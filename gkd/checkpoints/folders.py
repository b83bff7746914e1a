"""Finds the step folders of a run, reads their JSON items, and determines the best step."""

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
IN_USE_FOLDER = "in_use"
DESCRIPTION_ITEM = "description"
_JSON_FILES = {DATA_ITEM: "metadata", DESCRIPTION_ITEM: "metadata", "metrics": "metrics"}


def silence_orbax() -> None:
    """Hides Orbax's log lines from the console: its failures are raised as errors as well."""
    logger = logging.getLogger("absl")
    if _is_not_orbax not in logger.filters:
        logger.addFilter(_is_not_orbax)
        _silence_unfinished_writes()


def _silence_unfinished_writes() -> None:
    """Hides TensorStore's reports of further failed writes once a save has failed.

    Orbax has raised the first error by then, and closed the event loop that handles the others.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.msg)
    previous = sys.excepthook

    def hook(kind, error, trace):
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            previous(kind, error, trace)

    sys.excepthook = hook


def _is_not_orbax(record: logging.LogRecord) -> bool:
    path = record.pathname.replace("\\", "/")
    return "/orbax/" not in path


def mark_in_use(folder: epath.PathLike, user: Any) -> None:
    """Keeps a step for another run that reads it again: its own run does not delete it any more.

    Args:
      folder: path of a checkpoint. One that is no step of a run, or in a folder that cannot be
        written to, is left as it is.
      user: path of the run that reads it.
    """
    folder = epath.Path(folder)
    if not folder.name.isdecimal() or folder.parent.name != CHECKPOINTS_FOLDER:
        return
    try:
        place = folder.parent / IN_USE_FOLDER
        place.mkdir(exist_ok=True)
        (place / folder.name).write_text(f"read by {user}\n")
    except OSError as error:
        logging.getLogger(__name__).info("%s is not marked as in use: %s", folder, error)


def steps_in_use(directory: epath.PathLike) -> set[int]:
    """Lists the steps of a checkpoints folder that other runs read.

    Args:
      directory: path of the checkpoints folder.
    """
    place = epath.Path(directory) / IN_USE_FOLDER
    if not place.is_dir():
        return set()
    return {int(path.name) for path in place.iterdir() if path.name.isdecimal()}


def step_numbers(directory: epath.PathLike) -> list[int]:
    """Lists the complete steps of a checkpoints folder; unfinished ones have other names.

    Args:
      directory: path of the checkpoints folder, which may be missing.

    Returns:
      The steps, ascending.
    """
    directory = epath.Path(directory)
    if not directory.is_dir():
        return []
    places = [path for path in directory.iterdir() if _is_step_name(path.name) and path.is_dir()]
    # The runs of a sweep's row may be numbered too: they have checkpoints of their own.
    return sorted(int(path.name) for path in places if not (path / CHECKPOINTS_FOLDER).exists())


def _is_step_name(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def is_run(path: epath.PathLike) -> bool:
    """Returns True if `path` is a run directory, its checkpoints folder or a step folder.

    Args:
      path: path of an existing folder.
    """
    path = epath.Path(path).resolve()
    places = (path, path / CHECKPOINTS_FOLDER)
    is_step = (path / STATE_ITEM).is_dir() and _is_step_name(path.name)
    return is_step or any(step_numbers(place) for place in places)


def run_of(path: epath.PathLike) -> epath.Path:
    """Finds the run directory of a path.

    Args:
      path: path of a run directory, of its checkpoints folder or of one of its step folders.
    """
    path = epath.Path(path)
    folder = path.parent if _is_step_name(path.name) else path
    return folder.parent if folder.name == CHECKPOINTS_FOLDER else path


def read_item(folder: epath.PathLike, item: str) -> dict[str, Any]:
    """Reads a JSON item of a step folder.

    Args:
      folder: path of a step folder.
      item: 'data', 'description' or 'metrics'.

    Returns:
      The saved dictionary.

    Raises:
      ValueError: the item is damaged.
      OSError: the item is missing.
    """
    return read_json(epath.Path(folder) / item / _JSON_FILES[item], dict)


def write_item(folder: epath.PathLike, item: str, value: dict[str, Any]) -> None:
    """Writes a JSON item of a step folder, see `read_item`.

    Args:
      folder: path of a step folder.
      item: 'data', 'description' or 'metrics'.
      value: dictionary to save.
    """
    place = epath.Path(folder) / item
    place.mkdir()
    (place / _JSON_FILES[item]).write_text(json.dumps(value))


def better_or_equal(value: float, other: float, mode: str) -> bool:
    """Compares two values of a metric.

    Args:
      value, other: values of the metric.
      mode: 'max' if larger is better, else 'min'.

    Returns:
      True if `value` is at least as good as `other`.
    """
    return value >= other if mode == "max" else value <= other


def find_best_step(directory: epath.PathLike, metric: str, mode: str) -> int | None:
    """Finds the step with the best finite value of a metric.

    Args:
      directory: path of a checkpoints folder.
      metric: key of the metrics that were saved with the steps.
      mode: "max" if larger is better, "min" if smaller is.

    Returns:
      The step, the newest of equally good ones; None if no step has the metric.
    """
    best_step, best_value = None, math.nan
    for step in step_numbers(directory):
        try:
            value = read_item(epath.Path(directory) / str(step), "metrics").get(metric, math.nan)
        except (OSError, ValueError):  # damage is reported when the step is restored
            continue
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if is_number and (best_step is None or better_or_equal(value, best_value, mode)):
            best_step, best_value = step, value
    return best_step


def locate_steps(path: epath.PathLike) -> tuple[epath.Path, list[int]]:
    """Finds the checkpoints at a path.

    Args:
      path: path of a run directory, of its checkpoints folder, or of one step folder.

    Returns:
      The checkpoints folder and its steps, ascending; for a step folder this step only.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the path holds no checkpoint.
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
