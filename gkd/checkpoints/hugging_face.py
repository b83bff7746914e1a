"""Reads and writes Hugging Face directories of the T5 family: config.json and weights."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from gkd.checkpoints.heads import HEAD, for_hugging_face
from gkd.checkpoints.hub_models import local_copy
from gkd.checkpoints.hugging_face_names import (
    check_config,
    parameter_names,
    read_config,
    with_model_type,
    write_config,
)
from gkd.checkpoints.tensors import Checkpoint, as_tensors, check_tensors, read_finite, read_numpy
from gkd.errors import InvalidFile, MissingFile
from gkd.files import atomic_folders
from gkd.files.json_files import read_json, shown
from gkd.models.t5 import T5Config
from gkd.tensor_files.safetensors_files import (
    converted,
    same_values,
    split_by_size,
    write_safetensors,
)
from gkd.tensor_files.tensor import Tensor
from gkd.tensor_files.weight_files import INDEX_SUFFIX, SAFETENSORS, TABLES, open_weights
from gkd.vocabularies.tokenizer_files import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from gkd.vocabularies.tokenizer_files import TOKENIZER_FILES, VOCABULARY_FILE, read_tokenizer

CONFIG_FILE = "config.json"
INDEX_FILE = SAFETENSORS + INDEX_SUFFIX
LARGEST_FILE = 5e9
_TABLE, *_COPIES = TABLES
# Early T5 files hold a bias for cross-attention that no T5 has ever used.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def is_hugging_face(path: epath.PathLike) -> bool:
    """Returns True if `path` is a folder with a config.json."""
    return (epath.Path(path) / CONFIG_FILE).exists()


def load_hf(directory: epath.PathLike) -> tuple[T5Config, dict[str, Any]]:
    """Reads a Hugging Face directory of a T5, mT5, ByT5, UL2, FLAN or umT5 checkpoint.

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
    check_config(raw, path)
    files = open_weights(directory)
    _refuse_incomplete(files, raw, directory)
    copies, is_own = _copies(files, directory)
    config = read_config(raw, path, copies, is_own)
    known = parameter_names(config)
    tensors = {}
    for name, (theirs, transposed) in known.items():
        if theirs in files:
            tensors[name] = _oriented(files[theirs], transposed)
    rest = set(files) - {theirs for theirs, _ in known.values()} - {*_COPIES, *copies, _UNUSED}
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


def _refuse_incomplete(files: Mapping[str, Tensor], raw: Mapping[str, Any], directory: Any) -> None:
    """Refuses weights without a decoder, such as those of transformers' T5EncoderModel.

    And those under other names, such as the checkpoints of training libraries.
    """
    if any(name.startswith("decoder.block.") for name in files):
        return
    if any(name.startswith("encoder.block.") for name in files):
        kind = raw.get("architectures")
        raise InvalidFile(
            f"{directory} holds an encoder without a decoder ({shown(kind)}): take the complete "
            "model (…ForConditionalGeneration)"
        )
    longer = next((name for name in files if re.search(r"\.(en|de)coder\.block\.", name)), None)
    example = longer or next(iter(files), None)
    named = "no tensors" if example is None else f"tensors of other names, e.g. {shown(example)}"
    raise InvalidFile(
        f"{directory} holds {named}: a T5 has encoder.block.0… and decoder.block.0…, as "
        "transformers' `save_pretrained` writes them"
    )


def _oriented(tensor: Tensor, transposed: bool) -> Tensor:
    """Transposes a tensor if the libraries differ in orientation: [out, in] <-> [in, out]."""
    return converted(tensor, tensor.shape[::-1], np.transpose) if transposed else tensor


def _copies(files: dict[str, Tensor], directory: Any) -> tuple[tuple[str, ...], bool | None]:
    """Names of copies of the table, and True if the head differs from it (None without a head)."""
    copies = [name for name in _COPIES if name in files]
    if copies and _TABLE not in files:  # transformers also accepts a table under such a name only
        files[_TABLE] = files[copies.pop(0)]
    for name in copies:
        if not same_values(files[_TABLE], files[name]):
            raise InvalidFile(
                f"{directory}: {name} differs from {_TABLE}, but a T5 has one table for both"
            )
    if HEAD not in files:
        return tuple(copies), None
    is_own = _TABLE not in files or not same_values(files[_TABLE], files[HEAD])
    return (*copies, *([] if is_own else [HEAD])), is_own


def save_hf(
    directory: epath.PathLike,
    config: T5Config,
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
      ValueError: parameters do not fit the architecture, or values are not finite.
      OSError: writing failed, e.g. because the disk is full; `directory` is not created.
    """
    tensors = as_tensors(params)
    check_tensors(tensors, config, "to be written")
    config, tensors, head = for_hugging_face(config, tensors)
    known = parameter_names(config)
    theirs = {}
    for name, tensor in tensors.items():
        checked = dataclasses.replace(tensor, read=functools.partial(read_finite, tensor))
        theirs[known[name][0]] = _oriented(checked, known[name][1])
    for copy in config.embedding_copies:
        theirs[copy] = theirs[_TABLE]
    with atomic_folders.new_folder(directory) as folder:
        _write_weights(folder, theirs, largest_file)
        if tokenizer_from is not None:
            atomic_folders.copy_files(epath.Path(tokenizer_from), TOKENIZER_FILES, folder)
        tokenizer_class = "ByT5Tokenizer" if bytes_vocabulary else "T5Tokenizer"
        if sentencepiece is not None and not (folder / VOCABULARY_FILE).exists():
            (folder / VOCABULARY_FILE).write_bytes(epath.Path(sentencepiece).read_bytes())
        if sentinels is not None and not (folder / TOKENIZER_CONFIG_FILE).exists():
            tokenizer = {"tokenizer_class": tokenizer_class, "extra_ids": sentinels}
            (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(tokenizer, indent=2) + "\n")
        dtypes = {tensor.dtype.name for tensor in theirs.values()}
        raw = write_config(
            config, head, dtypes.pop() if len(dtypes) == 1 else None, tokenizer_class
        )
        (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n")
        generation = {name: raw[name] for name in _GENERATION}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


_GENERATION = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


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
