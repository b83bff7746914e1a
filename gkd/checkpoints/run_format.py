"""Reads gkd's own step folders as lazy tensors, and writes checkpoints tensor by tensor."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import type_handlers

from gkd.checkpoints import arrays, folders, hashes
from gkd.checkpoints.architectures import from_description
from gkd.checkpoints.grouped_reads import GroupedReads
from gkd.checkpoints.params import choose_step, read_description
from gkd.checkpoints.saved_adapters import SavedAdapters
from gkd.checkpoints.tensors import (
    Checkpoint,
    as_tensors,
    check_tensors,
    nest,
    read_finite,
    tensor_names,
    unstacked,
)
from gkd.files import atomic_folders
from gkd.files.json_files import Field, check_fields
from gkd.models.architecture import Architecture
from gkd.tensor_files.tensor import Tensor
from gkd.vocabularies.tokenizer_files import (
    GENERATION_FILE,
    TOKENIZER_FILES,
    VOCABULARY_FILE,
    read_tokenizer,
)

_DESCRIPTION_FIELDS = {
    "model": Field(kinds=(dict,), required=True),
    "vocabulary": Field(kinds=(dict,), none=True),
    "adapters": Field(kinds=(dict,), none=True),
}
_VOCABULARY_FIELDS = {
    "size": Field(kinds=(int,), least=1, most=1 << 24, required=True),
    "sha256": Field(kinds=(str,), most=64, required=True),
    "bytes": Field(kinds=(bool,)),
}


def open_run_checkpoint(path: epath.PathLike, step: int | str | None = None) -> Checkpoint:
    """Opens one step of a run after checking its hashes, without its optimizer state.

    Args:
      path: path of a run directory, of its checkpoints folder, or of one step folder.
      step: step to open, see `gkd.checkpoints.params.restore_params`.

    Returns:
      The checkpoint, with layers unstacked; of a run of adapters their tensors alone, see
      `saved_adapters.whole`.

    Raises:
      FileNotFoundError: the folder or the step does not exist.
      ValueError: the folder is no checkpoint, is damaged, or holds tensors of other shapes.
    """
    folder, chosen = choose_step(path, step)
    description = read_description(folder)
    check_fields(description, _DESCRIPTION_FIELDS, f"{folder}: description")
    if description.get("vocabulary"):
        where = f"{folder}: description, vocabulary"
        check_fields(description["vocabulary"], _VOCABULARY_FIELDS, where)
    config = from_description(description["model"], f"{folder}: description, model")
    saved = tensor_names(arrays.read_saved_shapes(folder).get("params", {}))
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in saved.items()}
    reads = GroupedReads(functools.partial(_read, folder, saved), sizes)
    tensors = {
        name: Tensor(
            tuple(leaf.shape),
            np.dtype(leaf.dtype),
            f"{folder}: {name}",
            functools.partial(reads.read, name),
        )
        for name, leaf in saved.items()
    }
    tensors = unstacked(tensors)
    adapters = description.get("adapters")
    if adapters is None:
        check_tensors(tensors, config, folder)
    else:
        adapters = SavedAdapters.from_description(adapters, f"{folder}: description, adapters")
    tokenizer = read_tokenizer(folder.parent.parent)
    return Checkpoint(
        path=folder,
        format="gkd",
        config=config,
        tensors=tensors,
        vocabulary=tokenizer.sentencepiece,
        bytes_vocabulary=(description.get("vocabulary") or {}).get("bytes", False),
        sentinels=tokenizer.sentinels_of(config.family),
        tokenizer=tokenizer,
        description=description,
        chosen=chosen,
        adapters=adapters,
        digest=hashes.digest_of(folder),
    )


def _read(folder, saved, names) -> dict[str, np.ndarray]:
    """Reads arrays by name, of those that are saved."""
    wanted = {name: np.empty(saved[name].shape, saved[name].dtype) for name in names}
    return tensor_names(arrays.read_arrays(folder, {"params": nest(wanted)})["params"])


def save_run_checkpoint(
    directory: epath.PathLike,
    config: Architecture,
    params: Any,
    description: Mapping[str, Any],
    vocabulary: epath.PathLike | None = None,
    tokenizer_from: epath.PathLike | None = None,
) -> None:
    """Writes a run directory with the single step 0 and parameters only, to serve as a model.

    Args:
      directory: path of the new folder, which must be missing or empty.
      config: the architecture.
      params: a nested dictionary of arrays, or `Tensor`s by name, which are read one at a time.
      description: description as in a run's checkpoints (`gkd.runs.model_loading.describe`).
      vocabulary: path of a sentencepiece model that is copied.
      tokenizer_from: path of a folder whose tokenizer files are copied.

    Raises:
      FileExistsError: the directory exists and is not empty.
      ValueError: parameters do not fit the architecture, or values are not finite.
      OSError: writing failed, e.g. because the disk is full; `directory` is not created.
    """
    tensors = as_tensors(params)
    check_tensors(tensors, config, "to be written")
    folders.silence_orbax()
    with atomic_folders.new_folder(directory) as run:
        step = run / folders.CHECKPOINTS_FOLDER / "0"
        step.mkdir(parents=True)
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=TENSOR_HANDLERS)
        with ocp.Checkpointer(handler) as writer:
            state = ocp.args.PyTreeSave({"params": nest(tensors)})
            writer.save(step / folders.STATE_ITEM, args=state)
        saved = {"description": dict(description), "best_metric": None, "best_mode": "max"}
        folders.write_item(step, folders.DESCRIPTION_ITEM, saved)
        folders.write_item(step, "metrics", {})
        hashes.write_hashes(step)
        if tokenizer_from is not None:
            names = (*TOKENIZER_FILES, GENERATION_FILE)
            atomic_folders.copy_files(epath.Path(tokenizer_from), names, run)
        if vocabulary is not None and not (run / VOCABULARY_FILE).exists():
            (run / VOCABULARY_FILE).write_bytes(epath.Path(vocabulary).read_bytes())


class _LazyHandler(type_handlers.TypeHandler):
    """Lets Orbax write `Tensor`s as NumPy arrays, each read just before it is written.

    It inherits, because Orbax's extension point for leaf types is a base class.
    """

    def __init__(self):
        self._arrays = type_handlers.NumpyHandler(deepcopy_host_arrays=False)

    def typestr(self) -> str:
        """Returns the leaf type on disk."""
        return self._arrays.typestr()

    async def metadata(self, infos):
        """Reads metadata as for NumPy arrays."""
        return await self._arrays.metadata(infos)

    async def deserialize(self, infos, args=None):
        """Reads arrays as for NumPy arrays."""
        return await self._arrays.deserialize(infos, args)

    async def serialize(self, values, infos, args=None):
        """Reads, writes and releases one tensor after the other."""
        for i, tensor in enumerate(values):
            array = np.ascontiguousarray(read_finite(tensor))
            for write in await self._arrays.serialize([array], [infos[i]], args and [args[i]]):
                await asyncio.to_thread(write.result)
        return []

    def memory_size(self, values):
        """Returns the bytes to write and to read for every tensor."""
        sizes = [math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in values]
        return [(size, size) for size in sizes]


# Lets Orbax write trees of `Tensor`s and arrays, one at a time.
TENSOR_HANDLERS = type_handlers.create_type_handler_registry(
    (Tensor, _LazyHandler()), (np.ndarray, type_handlers.NumpyHandler())
)
