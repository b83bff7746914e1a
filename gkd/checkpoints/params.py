"""Reads a run's parameters and model description, for a student's start or a teacher."""

from __future__ import annotations

import logging
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from gkd.checkpoints import arrays, folders, hashes
from gkd.json_files import Field, check_fields

_BEST_FIELDS = {
    "best_metric": Field(kinds=(str,), none=True),
    "best_mode": Field(kinds=(str,), choices=("max", "min"), required=True),
}
_LOG = logging.getLogger(__name__)


def restore_params(
    directory: epath.PathLike,
    abstract_params: Any = None,
    step: int | Literal["best"] | None = None,
) -> Any:
    """Reads a checkpoint's parameters, after checking its hashes; changes nothing on disk.

    Args:
      directory: a run directory, its checkpoints folder, or one step folder.
      abstract_params: the wanted tree of `jax.ShapeDtypeStruct`s or arrays: structure, shapes,
        dtypes (converted to) and shardings. None: a nested dict of NumPy arrays.
      step: None for the newest intact step, a step number, or "best" for the best by the metric
        that the run kept its best by.

    Returns:
      The parameters.

    Raises:
      FileNotFoundError: the folder or the step does not exist.
      ValueError: it is no checkpoint, is damaged, or holds tensors of other shapes.
    """
    folder = _intact_folder(directory, step)
    saved = arrays.read_saved_shapes(folder)
    if not isinstance(saved, dict) or "params" not in saved:
        raise ValueError(f"checkpoint {folder} holds no params")
    wanted = abstract_params
    if wanted is None:
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved["params"])
    differences = arrays.describe_differences(saved["params"], wanted, compare_types=False)
    if differences:
        raise ValueError(f"checkpoint {folder} does not fit the model: {differences}")
    return arrays.read_arrays(folder, {"params": wanted})["params"]


def read_description(path: epath.PathLike) -> dict[str, Any]:
    """Reads the model description that a run saves with every step.

    Args:
      path: a run directory, its checkpoints folder, or one step folder.

    Returns:
      The dictionary given to the `CheckpointStore` that saved it.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: it is no checkpoint, or no step in it is intact.
    """
    folder = _intact_folder(path, None, thorough=False)
    saved = folders.read_item(folder, folders.DESCRIPTION_ITEM)
    check_fields(saved, {"description": Field(kinds=(dict,), required=True)}, folder)
    return saved["description"]


def find_step(
    path: epath.PathLike, step: int | Literal["best"] | None = None, thorough: bool = False
) -> epath.Path:
    """The step folder that `restore_params` would read.

    Args:
      path: a run directory, its checkpoints folder, or one step folder (then `step` is ignored).
      step: see `restore_params`.
      thorough: whether to check every file's hash, else only sizes.

    Returns:
      The absolute path of the step folder; its name is the step.

    Raises:
      As `restore_params`.
    """
    return _intact_folder(path, step, thorough)


def _intact_folder(
    path: epath.PathLike, step: int | Literal["best"] | None, thorough: bool = True
) -> epath.Path:
    """Returns the step folder to read: the newest intact one, or the one asked for."""
    directory, steps = folders.locate_steps(path)
    if epath.Path(path).resolve() == directory / str(steps[-1]):  # a step folder is its own step
        step = None
    if step == "best":
        steps = [_recorded_best(directory, steps)]
    elif step is not None:
        if step not in steps:
            raise FileNotFoundError(f"{directory} has no step {step}; it has {steps}")
        steps = [step]
    damages = []
    for candidate in reversed(steps):
        folder = directory / str(candidate)
        damage = hashes.find_damage(folder, thorough)
        if damage is None:
            for line in damages:
                _LOG.warning("%s; step %d is used instead", line, candidate)
            return folder
        damages.append(f"checkpoint {folder} is damaged ({damage})")
    raise ValueError("; ".join(damages) + ": give an intact step")


def _recorded_best(directory: epath.Path, steps: list[int]) -> int:
    """Returns the best of a checkpoints folder by the metric its run recorded."""
    readable = _intact_folder(directory, None, thorough=False)
    description = folders.read_item(readable, folders.DESCRIPTION_ITEM)
    check_fields(description, _BEST_FIELDS, readable)
    metric = description.get("best_metric")
    best = metric and folders.find_best_step(directory, metric, description["best_mode"])
    if best is None or best not in steps:
        raise ValueError(
            f"{directory} has no best step: its run saved no metric to compare by ({metric}); "
            f"give a step of {steps}"
        )
    return best
