"""Recognises the format of a checkpoint by its files, and opens checkpoints of any format."""

from __future__ import annotations

import dataclasses
import os

from etils import epath

from gkd.checkpoints import hub_models, saved_adapters
from gkd.checkpoints.folders import is_run
from gkd.checkpoints.hugging_face import is_hugging_face, open_hf
from gkd.checkpoints.run_format import open_run_checkpoint
from gkd.checkpoints.t5x_arrays import describe_orbax, is_t5x
from gkd.checkpoints.t5x_format import open_t5x
from gkd.checkpoints.tensors import Checkpoint
from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.files import hub
from gkd.step_names import BEST_OR_NEWEST, NEWEST
from gkd.tensor_files.weight_files import describe_folder, find_weights

FORMATS = ("gkd", "huggingface", "t5x")


def recognise(path: epath.PathLike) -> str:
    """Recognises the format of a checkpoint.

    Args:
      path: path of the checkpoint's folder.

    Returns:
      One of `FORMATS`.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the path is a file, or its files are of a format that is not read.
    """
    path = epath.Path(path)
    if not path.exists():
        run_file = f"{path}.gin"  # as `new` names run files and their runs
        remark = f": train it first, with {run_file}" if os.path.isfile(run_file) else ""
        raise MissingFile(f"checkpoint {path}: there is no such folder{remark or hub.remark(path)}")
    if not path.is_dir():
        raise InvalidFile(f"checkpoint {path} is a file: give the folder that holds the checkpoint")
    if is_hugging_face(path):
        return "huggingface"
    if is_t5x(path):
        return "t5x"
    if is_run(path):
        return "gkd"
    found = find_weights([file.name for file in path.iterdir()])
    if found is not None:
        raise InvalidFile(
            f"{path} holds {found[1]} without config.json, which describes the model: copy or "
            "download it too"
        )
    orbax = describe_orbax(path)
    if orbax:
        raise InvalidFile(f"{path} is not a checkpoint that is read{orbax}")
    raise InvalidFile(
        f"{path} is not a checkpoint: give a run directory or step folder of this program, a "
        "Hugging Face directory (with config.json) or a T5X checkpoint (with a file `checkpoint` "
        f"or a folder `state`){describe_folder(path)}"
    )


def open_checkpoint(path: epath.PathLike, step: int | str | None = None) -> Checkpoint:
    """Opens a checkpoint of any format; tensors are read on demand.

    Args:
      path: path of a run directory or one of its step folders, a Hugging Face directory, a T5X
        checkpoint, or the name of a model on the Hugging Face Hub, OWNER/NAME[@REVISION]. A run of
        adapters is opened as the whole model that they and their base are.
      step: step of a run, see `gkd.checkpoints.params.restore_params`; other formats have none.

    Returns:
      The opened checkpoint.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged or does not fit.
    """
    path, source = hub_models.local_copy(path)
    kind = recognise(path)
    if kind != "gkd" and step not in (None, BEST_OR_NEWEST, NEWEST):
        raise InvalidValue(f"step {step}: {path} is a {kind} checkpoint, only a run has steps")
    if kind == "huggingface":
        return dataclasses.replace(open_hf(path), source=source)
    if kind == "t5x":
        return open_t5x(path)
    opened = open_run_checkpoint(path, step)
    return opened if opened.adapters is None else saved_adapters.whole(opened, open_checkpoint)
