"""Reads and writes T5X's checkpoints, in its msgpack and in its Orbax layout.

Arrays are read one at a time, those of a scanned model (T5X's scalable_t5) one layer at a time. The
index is compared with the files on disk; paths out of the checkpoint's folder are refused.
Source: t5x/checkpoints.py, version 3, at https://github.com/google-research/t5x.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization

from gkd.checkpoints import folders, t5x_arrays, t5x_gin
from gkd.checkpoints.run_format import TENSOR_HANDLERS
from gkd.checkpoints.t5x_arrays import INDEX_FILE
from gkd.checkpoints.tensors import (
    Checkpoint,
    as_tensors,
    check_tensors,
    layer_count,
    nest,
    read_finite,
    read_numpy,
)
from gkd.errors import InvalidFile, InvalidValue
from gkd.files import atomic_folders
from gkd.hugging_face.t5_heads import with_own_head
from gkd.models.architecture import Architecture
from gkd.models.t5 import T5Config
from gkd.tensor_files.orbax_arrays import StoredArray
from gkd.tensor_files.tensor import Tensor
from gkd.tensor_files.zarr_arrays import write_zarr
from gkd.vocabularies.tokenizer_files import TOKENIZER_FILES, read_tokenizer

LAYOUTS = ("msgpack", "orbax")
GIN_FILE = "config.gin"
VOCABULARY_FILES = ("spiece.model", "sentencepiece.model")
_MOST_LAYERS = 1024
_LARGEST_SIZE = 1 << 24
_MT5_VOCABULARY = 250112
_GIN_FIELDS = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "mlp_activations",
    "logits_via_embedding",
    "dropout_rate",
    "dtype",
)


def open_t5x(path: epath.PathLike, config: T5Config | None = None) -> Checkpoint:
    """Opens a T5X checkpoint without reading its weights.

    Args:
      path: path of a checkpoint's folder, or of a model's folder (its newest complete checkpoint).
        Of Orbax, the folder `state` is accepted too.
      config: the architecture; by default it is inferred from names and shapes, and from a
        config.gin in the folder or its parent: activations (without the file gelu, or relu if there
        is no gate) and dropout rate (without the file 0).

    Returns:
      The checkpoint, with separate layers and attention kernels [in, out].

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the index is damaged, leads out of its folder, or does not fit the architecture.
    """
    folder = t5x_arrays.find_t5x(path)
    index, arrays = t5x_arrays.open_arrays(folder)
    tensors = _in_our_layout(arrays, index)
    gin = _read_gin(folder)
    if config is None:
        config = _infer(tensors, gin, folder)
    config = dataclasses.replace(config, stacked_layers=False)
    check_tensors(tensors, config, folder)
    read = [read_tokenizer(place, None, VOCABULARY_FILES) for place in (folder, folder.parent)]
    tokenizer = next((files for files in read if files.names or files.sentencepiece), read[0])
    return Checkpoint(
        path=folder,
        format="t5x",
        config=config,
        tensors=tensors,
        vocabulary=tokenizer.sentencepiece,
        bytes_vocabulary="ByteVocabulary" in gin or tokenizer.is_bytes,
        tokenizer=tokenizer,
    )


def load_t5x(directory: epath.PathLike, config: T5Config | None = None) -> dict[str, Any]:
    """Reads the parameters of a T5X checkpoint.

    Args:
      directory: path of a checkpoint's folder, or of a model's folder (its newest complete
        checkpoint).
      config: the architecture that they must fit; by default inferred from names and shapes.

    Returns:
      A nested dictionary of NumPy arrays in the file's dtypes, layers not stacked.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: files are damaged, tensors do not fit, or values are not finite.
    """
    return read_numpy(open_t5x(directory, config).tensors)


def _in_our_layout(stored: Mapping[str, StoredArray], index: epath.Path) -> dict[str, Tensor]:
    """Separates scanned layers (axis 1, under encoder/encoder and decoder/decoder), joins heads."""
    tensors = {}
    for name, leaf in stored.items():
        where = f"{index}: {name}"
        side, _, rest = name.partition("/")
        if side not in ("encoder", "decoder") or not rest.startswith(f"{side}/"):
            tensors[name] = _tensor(name, leaf, leaf.shape, where, None)
            continue
        if len(leaf.shape) < 2 or not 0 < leaf.shape[1] <= _MOST_LAYERS:
            raise InvalidFile(f"{where} is {list(leaf.shape)}: the second axis counts its layers")
        shape = (leaf.shape[0], *leaf.shape[2:])
        for i in range(leaf.shape[1]):
            ours = f"{side}/layers_{i}{rest.removeprefix(side)}"
            tensors[ours] = _tensor(ours, leaf, shape, f"{where}[:, {i}]", i)
    return tensors


def _tensor(
    name: str, leaf: StoredArray, shape: tuple[int, ...], where: str, layer: int | None
) -> Tensor:
    """Joins heads: [embed, heads, dim] -> [embed, heads·dim], for `out` likewise."""
    if len(shape) == 3 and name.endswith(("/query/kernel", "/key/kernel", "/value/kernel")):
        shape = (shape[0], shape[1] * shape[2])
    elif len(shape) == 3 and name.endswith("/out/kernel"):
        shape = (shape[0] * shape[1], shape[2])
    return Tensor(shape, leaf.dtype, where, functools.partial(_read_shaped, leaf, layer, shape))


def _read_shaped(leaf: StoredArray, layer: int | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(leaf.read(layer)).reshape(shape)


def _read_gin(folder: epath.Path) -> str:
    for path in (folder / GIN_FILE, folder.parent / GIN_FILE):
        if path.exists():
            try:
                return path.read_text()
            except UnicodeDecodeError as error:
                raise InvalidFile(f"{path} is not UTF-8 (byte {error.start})") from error
    return ""


def _infer(tensors: Mapping[str, Tensor], gin: str, folder: epath.Path) -> T5Config:
    """Infers the architecture from names and shapes, and the rest from a gin file."""
    where = f"{GIN_FILE} of {folder}"
    bound = t5x_gin.read_t5_config(gin, where)

    def shape(name: str) -> tuple[int, int]:
        sizes = tensors[name].shape if name in tensors else ()
        if len(sizes) != 2 or not all(0 < size < _LARGEST_SIZE for size in sizes):
            raise InvalidFile(
                f"{folder}: {name} is {list(sizes) or 'missing'}: these are not a T5's parameters"
            )
        return sizes

    layer = "encoder/layers_0"
    per_layer = f"{layer}/relpos_bias/rel_embedding" in tensors
    bias = f"{layer if per_layer else 'encoder'}/relpos_bias/rel_embedding"
    gated = f"{layer}/mlp/wi_0/kernel" in tensors
    vocab_size, emb_dim = shape("token_embedder/embedding")
    heads, joined = shape(bias)[0], shape(f"{layer}/attention/query/kernel")[1]
    if joined % heads:
        raise InvalidFile(f"{folder}: {joined} columns of a query kernel are not {heads} heads")
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=heads,
        head_dim=joined // heads,
        mlp_dim=shape(f"{layer}/mlp/{'wi_0' if gated else 'wi'}/kernel")[1],
        num_encoder_layers=_depth(tensors, "encoder", folder),
        num_decoder_layers=_depth(tensors, "decoder", folder),
        mlp_activations=t5x_gin.activations(bound, gated, where),
        logits_via_embedding="decoder/logits_dense/kernel" not in tensors,
        relative_bias_per_layer=per_layer,
        dropout_rate=t5x_gin.dropout_rate(bound, where),
        # The model type for Hugging Face; mT5 is recognised by the size of its table.
        family="umt5" if per_layer else "mt5" if vocab_size == _MT5_VOCABULARY else "t5",
    )


def _depth(tensors: Mapping[str, Tensor], side: str, folder: epath.Path) -> int:
    count = layer_count(tensors, side)
    there = {name.split("/")[1] for name in tensors if name.startswith(f"{side}/layers_")}
    if len(there) != count:
        raise InvalidFile(
            f"{folder}: the {side} has layers up to {count - 1}, but {len(there)} here"
        )
    return count


def save_t5x(
    directory: epath.PathLike,
    config: Architecture,
    params: Any,
    step: int = 0,
    sentencepiece: epath.PathLike | None = None,
    tokenizer_from: epath.PathLike | None = None,
    layout: str = "msgpack",
) -> None:
    """Writes a checkpoint that T5X restores, atomically and tensor by tensor.

    It holds the parameters and the step, but no optimizer state: T5X evaluates and infers from it,
    and trains from it with `fallback_to_scratch`. Layers are not scanned; with a relative bias per
    layer the kernels have the shapes of scalable_t5 with `scan_layers=False`. T5X scales the logits
    of tied heads only: other scales are multiplied into an untied head, with the same logits. A
    config.gin beside the index holds the architecture.

    Args:
      directory: path of the new folder, e.g. …/checkpoint_1000, which must be missing or empty.
      config: the architecture, a T5Config.
      params: a nested dictionary of arrays, layers stacked or not, or `Tensor`s by name.
      step: training step to record in the checkpoint.
      sentencepiece: path of a sentencepiece model that is copied as spiece.model.
      tokenizer_from: path of a folder whose tokenizer files are copied.
      layout: 'msgpack', which every version of T5X reads, or 'orbax', as its checkpoint manager
        writes: the folder must then be named checkpoint_STEP for T5X to find it.

    Raises:
      FileExistsError: the directory exists and is not empty.
      ValueError: the architecture is another one, parameters do not fit it, or values are not
        finite.
      OSError: writing failed, e.g. because the disk is full; `directory` is not created.
    """
    if not isinstance(config, T5Config):
        raise InvalidValue(
            f"a {config.family} is not written in T5X's format, which holds T5 alone: choose "
            "gkd or huggingface"
        )
    tensors = as_tensors(params)
    check_tensors(tensors, config, "to be written")
    if config.scale_logits is not None:  # T5X scales tied heads and no others
        config, tensors = with_own_head(config, tensors)
    with atomic_folders.new_folder(directory) as folder:
        _LAYOUTS[layout](folder, _for_t5x(tensors, config), np.asarray(step, np.int32))
        if tokenizer_from is not None:
            atomic_folders.copy_files(epath.Path(tokenizer_from), TOKENIZER_FILES, folder)
        if sentencepiece is not None and not (folder / VOCABULARY_FILES[0]).exists():
            (folder / VOCABULARY_FILES[0]).write_bytes(epath.Path(sentencepiece).read_bytes())
        (folder / GIN_FILE).write_text(_gin_of(config))


def _for_t5x(tensors: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """Separates the heads of attention kernels, as scalable_t5 has them."""
    heads, result = (config.num_heads, config.head_dim), {}
    for name, tensor in tensors.items():
        shape = tensor.shape
        if config.relative_bias_per_layer and "attention/" in name:
            is_out = name.endswith("/out/kernel")
            shape = (*heads, shape[1]) if is_out else (shape[0], *heads)
        read = functools.partial(_read_finite_as, tensor, shape)
        result[name] = Tensor(shape, tensor.dtype, tensor.where, read)
    return result


def _read_finite_as(tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    return read_finite(tensor).reshape(shape)


def _write_msgpack(folder: epath.Path, tensors: Mapping[str, Tensor], step: np.ndarray) -> None:
    target = {
        name: write_zarr(folder, f"target.{name.replace('/', '.')}", tensor.read())
        for name, tensor in tensors.items()
    }
    index = {"version": 3, "optimizer": {"target": nest(target), "state": {"step": step}}}
    (folder / INDEX_FILE).write_bytes(serialization.msgpack_serialize(index))


def _write_orbax(folder: epath.Path, tensors: Mapping[str, Tensor], step: np.ndarray) -> None:
    folders.silence_orbax()
    tree = {"target": nest(tensors), "state": {"step": step}}
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=TENSOR_HANDLERS)
    # T5X's manager writes the item `state` of a composite; Orbax creates that folder itself.
    composite = ocp.CompositeCheckpointHandler(**{folders.STATE_ITEM: handler})
    with ocp.Checkpointer(composite) as writer:
        items = {folders.STATE_ITEM: ocp.args.PyTreeSave(tree)}
        writer.save(folder / "composite", args=ocp.args.Composite(**items))
    for path in (folder / "composite").iterdir():
        path.rename(folder / path.name)
    (folder / "composite").rmdir()


_LAYOUTS = {"msgpack": _write_msgpack, "orbax": _write_orbax}


def _gin_of(config: T5Config) -> str:
    example = "scalable_t5" if config.relative_bias_per_layer else "t5"
    lines = [f"from t5x.examples.{example} import network", ""]
    values = dataclasses.asdict(config)
    lines += [f"network.T5Config.{name} = {values[name]!r}" for name in _GIN_FIELDS]
    if config.relative_bias_per_layer:
        lines.append("network.T5Config.scan_layers = False")
    return "\n".join(lines) + "\n"
