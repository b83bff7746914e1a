"""Reads the parameters and the model description of a run, for a student or a teacher."""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np
from etils import epath

from gkd.checkpoints import arrays, folders, hashes
from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.files.json_files import Field, check_fields
from gkd.step_names import BEST, BEST_OR_NEWEST, NEWEST, parse_step

_BEST_FIELDS = {
    "best_metric": Field(kinds=(str,), none=True),
    "best_mode": Field(kinds=(str,), choices=("max", "min"), required=True),
}
_LOG = logging.getLogger(__name__)


def restore_params(
    directory: epath.PathLike,
    abstract_params: Any = None,
    step: int | str | None = None,
) -> Any:
    """Reads the parameters of a checkpoint after checking its hashes, without changing any file.

    Args:
      directory: path of a run directory, of its checkpoints folder, or of one step folder.
      abstract_params: tree of `jax.ShapeDtypeStruct`s or arrays, whose structure, shapes, dtypes
        and shardings the result has; None for a nested dict of NumPy arrays.
      step: number of a step; None or "newest" for the newest intact step; "best" for the best step
        by the run's own metric; "best_or_newest" for the best step if the run has one.

    Returns:
      The parameters.

    Raises:
      FileNotFoundError: the folder or the step does not exist.
      ValueError: the folder is no checkpoint, is damaged, or holds tensors of other shapes.
    """
    folder, _ = choose_step(directory, step)
    saved = arrays.read_saved_shapes(folder)
    if not isinstance(saved, dict) or "params" not in saved:
        raise InvalidFile(f"checkpoint {folder} holds no params")
    wanted = abstract_params
    if wanted is None:
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved["params"])
    differences = arrays.describe_differences(saved["params"], wanted, compare_types=False)
    if differences:
        raise InvalidFile(f"checkpoint {folder} does not fit the model: {differences}")
    return arrays.read_arrays(folder, {"params": wanted})["params"]


def read_description(path: epath.PathLike) -> dict[str, Any]:
    """Reads the model description that a run saves with every step.

    Args:
      path: path of a run directory, of its checkpoints folder, or of one step folder.

    Returns:
      The description that was given to the `CheckpointStore` of the run.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the folder is no checkpoint, or no step is intact.
    """
    folder, _ = choose_step(path, None, thorough=False)
    saved = folders.read_item(folder, folders.DESCRIPTION_ITEM)
    check_fields(saved, {"description": Field(kinds=(dict,), required=True)}, folder)
    return saved["description"]


def choose_step(
    path: epath.PathLike, step: int | str | None = None, thorough: bool = True
) -> tuple[epath.Path, str]:
    """Chooses the step folder to read, by one rule for all verbs.

    Args:
      path: path of a run directory, of its checkpoints folder, or of one step folder.
      step: step to choose, see `restore_params`.
      thorough: check the hash of every file, otherwise only sizes.

    Returns:
      The absolute path of the step folder, whose name is the step; and the reason in words: "step
      20, the best by exact_match".

    Raises:
      FileNotFoundError: the folder or the step does not exist.
      ValueError: the folder is no checkpoint, or the step is damaged.
    """
    step = parse_step(step)
    directory, steps = folders.locate_steps(path)
    reason = "its newest"
    if epath.Path(path).resolve() == directory / str(steps[-1]):
        if isinstance(step, int) and step != steps[-1]:
            raise InvalidValue(f"{path} is step {steps[-1]} of its run, not {step}: give only one")
        step, reason = steps[-1], "the folder given"
    elif isinstance(step, int):
        if step not in steps:
            raise MissingFile(f"{directory} has no step {step}; it has {steps}")
        reason = "as asked for"
    elif step in (BEST, BEST_OR_NEWEST):
        metric, best = _recorded_best(directory, steps)
        if best is None and step == BEST:
            raise InvalidValue(
                f"{directory} has no best step: its run saved no metric to compare by ({metric}); "
                f"give a step of {steps}"
            )
        if best is None:
            reason = "its newest, as its run saved no metric to choose the best by"
        else:
            step, reason = best, f"the best by {metric}"
    candidates = [step] if isinstance(step, int) else steps
    damages = []
    for candidate in reversed(candidates):
        folder = directory / str(candidate)
        damage = hashes.find_damage(folder, thorough)
        if damage is None:
            for line in damages:
                _LOG.warning("%s; step %d is used instead", line, candidate)
            return folder, f"step {candidate}, {reason}"
        damages.append(f"checkpoint {folder} is damaged ({damage})")
    raise InvalidFile("; ".join(damages) + ": give an intact step")


def _recorded_best(directory: epath.Path, steps: list[int]) -> tuple[str | None, int | None]:
    """The metric by which a run compares its steps, and the best step."""
    readable, _ = choose_step(directory, NEWEST, thorough=False)
    description = folders.read_item(readable, folders.DESCRIPTION_ITEM)
    check_fields(description, _BEST_FIELDS, readable)
    metric = description.get("best_metric")
    best = metric and folders.find_best_step(directory, metric, description["best_mode"])
    return metric, best if best in steps else None
