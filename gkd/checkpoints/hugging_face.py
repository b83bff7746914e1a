"""Reads and writes Hugging Face directories of all families: config.json and weights."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from gkd.checkpoints.hub_models import local_copy
from gkd.checkpoints.tensors import Checkpoint, as_tensors, check_tensors, read_finite, read_numpy
from gkd.errors import MissingFile
from gkd.files import atomic_folders
from gkd.files.json_files import read_json
from gkd.hugging_face import families
from gkd.hugging_face.t5 import with_model_type
from gkd.models.architecture import Architecture
from gkd.tensor_files.safetensors_files import (
    converted,
    split_by_size,
    write_safetensors,
)
from gkd.tensor_files.tensor import Tensor
from gkd.tensor_files.weight_files import INDEX_SUFFIX, SAFETENSORS, open_weights
from gkd.vocabularies.tokenizer_files import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from gkd.vocabularies.tokenizer_files import TOKENIZER_FILES, VOCABULARY_FILE, read_tokenizer

CONFIG_FILE = "config.json"
INDEX_FILE = SAFETENSORS + INDEX_SUFFIX
LARGEST_FILE = 5e9
GENERATION_FILE = "generation_config.json"


def is_hugging_face(path: epath.PathLike) -> bool:
    """Returns True if `path` is a folder with a config.json."""
    return (epath.Path(path) / CONFIG_FILE).exists()


def load_hf(directory: epath.PathLike) -> tuple[Architecture, dict[str, Any]]:
    """Reads a Hugging Face directory: the T5 family, Qwen, Llama, SmolLM2, Gemma 3.

    Args:
      directory: path of a folder with config.json and weights: model.safetensors,
        flax_model.msgpack or, where PyTorch is installed, pytorch_model.bin; as one file or in
        shards with an index. Or the name of a model on the Hugging Face Hub, OWNER/NAME[@REVISION].

    Returns:
      The architecture, and the parameters as a nested dictionary of NumPy arrays in the file's
      dtypes, under T5X's names and in its orientation (kernels [in, out]).

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the family is another one, files are damaged, tensors do not fit, or values are
        not finite.
      ImportError: the weights are PyTorch's, which is not installed.
    """
    checkpoint = open_hf(local_copy(directory)[0])
    return checkpoint.config, read_numpy(checkpoint.tensors)


def open_hf(directory: epath.PathLike) -> Checkpoint:
    """Opens a Hugging Face directory without reading the weights, see `load_hf`.

    Args:
      directory: path of the folder.

    Returns:
      The checkpoint; the headers of its tensors have been checked against config.json.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the family is another one, files are damaged, or tensors do not fit.
      ImportError: the weights are PyTorch's, which is not installed.
    """
    directory = epath.Path(directory)
    path = directory / CONFIG_FILE
    if not path.exists():
        raise MissingFile(f"{path} does not exist: this is no Hugging Face checkpoint")
    raw = with_model_type(read_json(path, dict))
    family = families.of_model_type(raw, path)
    generation = directory / GENERATION_FILE
    generation = read_json(generation, dict) if generation.exists() else {}
    files = open_weights(directory)
    config, unused = family.read(raw, generation, files, path)
    known = family.parameter_names(config)
    tensors = {}
    for name, (theirs, transposed) in known.items():
        if theirs in files:
            tensors[name] = _oriented(files[theirs], transposed)
    rest = set(files) - {theirs for theirs, _ in known.values()} - unused
    tensors.update({theirs: files[theirs] for theirs in sorted(rest)})  # reported as left over
    check_tensors(tensors, config, directory)
    tokenizer = read_tokenizer(directory, raw.get("tokenizer_class"))
    return Checkpoint(
        path=directory,
        format="huggingface",
        config=config,
        tensors=tensors,
        vocabulary=tokenizer.sentencepiece,
        bytes_vocabulary=tokenizer.is_bytes,
        sentinels=tokenizer.sentinels_of(config.family),
        tokenizer=tokenizer,
    )


def _oriented(tensor: Tensor, transposed: bool) -> Tensor:
    """Transposes a tensor if the libraries differ in orientation: [out, in] <-> [in, out]."""
    return converted(tensor, tensor.shape[::-1], np.transpose) if transposed else tensor


def save_hf(
    directory: epath.PathLike,
    config: Architecture,
    params: Any,
    tokenizer_from: epath.PathLike | None = None,
    sentencepiece: epath.PathLike | None = None,
    sentinels: int | None = None,
    bytes_vocabulary: bool = False,
    largest_file: float | int = LARGEST_FILE,
) -> None:
    """Writes a Hugging Face directory that transformers loads, atomically and tensor by tensor.

    Args:
      directory: path of the new folder, which must be missing or empty.
      config: the architecture; `family` and `embedding_copies` are written as they were read.
      params: a nested dictionary of arrays, layers stacked or not, or `Tensor`s by name.
      tokenizer_from: path of a folder whose tokenizer files are copied.
      sentencepiece: path of a sentencepiece model, used if no such folder has one.
      sentinels: number of ids after those of the sentencepiece.
      bytes_vocabulary: true if ids are bytes (ByT5), which no file describes.
      largest_file: greatest size of a weight file in bytes; more is split over several files.

    Raises:
      FileExistsError: the directory exists and is not empty.
      ValueError: parameters do not fit the architecture, or values are not finite, or no
        config.json of the family describes the architecture.
      OSError: writing failed, e.g. because the disk is full; `directory` is not created.
    """
    tensors = as_tensors(params)
    check_tensors(tensors, config, "to be written")
    family = families.of_architecture(config)
    config, tensors, head = family.prepare(config, tensors)
    known = family.parameter_names(config)
    theirs = {}
    for name, tensor in tensors.items():
        checked = dataclasses.replace(tensor, read=functools.partial(read_finite, tensor))
        theirs[known[name][0]] = _oriented(checked, known[name][1])
    for copy in config.embedding_copies:
        theirs[copy] = theirs[family.TABLE]
    if not any(tensor.stack for tensor in tensors.values()):
        theirs = dict(sorted(theirs.items()))  # as transformers writes them
    tokenizer_class = "ByT5Tokenizer" if bytes_vocabulary else "T5Tokenizer"
    dtypes = {tensor.dtype.name for tensor in theirs.values()}
    raw, generation = family.write_config(
        config, head, dtypes.pop() if len(dtypes) == 1 else None, tokenizer_class
    )
    with atomic_folders.new_folder(directory) as folder:
        _write_weights(folder, theirs, largest_file)
        if tokenizer_from is not None:
            atomic_folders.copy_files(epath.Path(tokenizer_from), TOKENIZER_FILES, folder)
        if sentencepiece is not None and not (folder / VOCABULARY_FILE).exists():
            (folder / VOCABULARY_FILE).write_bytes(epath.Path(sentencepiece).read_bytes())
        if sentinels is not None and not (folder / TOKENIZER_CONFIG_FILE).exists():
            tokenizer = {"tokenizer_class": tokenizer_class, "extra_ids": sentinels}
            (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(tokenizer, indent=2) + "\n")
        (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n")
        (folder / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n")


def _write_weights(folder: epath.Path, tensors: Mapping[str, Tensor], largest: float | int) -> None:
    shards = split_by_size(tensors, largest)
    if len(shards) == 1:
        write_safetensors(folder / SAFETENSORS, shards[0])
        return
    places = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard)
        places.update(dict.fromkeys(shard, name))
    total = sum(t.dtype.itemsize * int(np.prod(t.shape)) for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
