"""Reads and writes T5X's native checkpoints: a msgpack index with small arrays, and zarr arrays.

Arrays are read one at a time, those of a scanned model (T5X's scalable_t5) one layer at a time. The
index is compared with the files on disk; paths out of the checkpoint's folder are refused.
Source: t5x/checkpoints.py, version 3, at https://github.com/google-research/t5x.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore
from etils import epath
from flax import serialization

from gkd.checkpoints import t5x_gin
from gkd.checkpoints.heads import with_own_head
from gkd.checkpoints.tensors import (
    Checkpoint,
    as_tensors,
    check_tensors,
    layer_count,
    nest,
    read_finite,
    read_numpy,
)
from gkd.errors import InvalidFile, MissingFile
from gkd.files import atomic_folders
from gkd.models.t5 import T5Config
from gkd.tensor_files.msgpack_file import FLOAT_TYPES, StoredArray, index_msgpack, read_array
from gkd.tensor_files.tensor import Tensor
from gkd.tensor_files.zarr_arrays import is_specification, locate_zarr, read_zarr, write_zarr
from gkd.vocabularies.tokenizer_files import TOKENIZER_FILES, read_tokenizer

INDEX_FILE = "checkpoint"
GIN_FILE = "config.gin"
VOCABULARY_FILES = ("spiece.model", "sentencepiece.model")
_STEP_FOLDER = re.compile(r"checkpoint_(\d+)")
_MOST_LAYERS = 1024
_LARGEST_SIZE = 1 << 24
_MT5_VOCABULARY = 250112
_CACHE_BYTES = 1 << 28
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


def is_t5x(path: epath.PathLike) -> bool:
    """Returns True if `path` is the folder of a T5X checkpoint, or of a model with checkpoints."""
    return _has_index(epath.Path(path)) or bool(_steps(epath.Path(path)))


def _has_index(folder: epath.Path) -> bool:
    index = folder / INDEX_FILE
    if not index.exists() or index.is_dir():
        return False
    with index.open("rb") as file:  # TensorFlow has a text file of that name
        return not file.read(64).startswith(b"model_checkpoint_path")


def _steps(folder: epath.Path) -> dict[int, epath.Path]:
    """The complete checkpoints in a model's folder; T5X writes the index last."""
    if not folder.is_dir():
        return {}
    matches = {path: _STEP_FOLDER.fullmatch(path.name) for path in folder.iterdir()}
    return {
        int(match.group(1)): path for path, match in matches.items() if match and _has_index(path)
    }


def find_t5x(path: epath.PathLike) -> epath.Path:
    """Finds the folder of a T5X checkpoint.

    Args:
      path: path of a checkpoint's folder, or of a model's folder with complete checkpoints.

    Returns:
      The checkpoint's folder, the newest complete one of a model.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the folder holds no complete checkpoint.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingFile(f"checkpoint {path}: there is no such folder")
    if _has_index(path):
        return path
    steps = _steps(path)
    if not steps:
        raise InvalidFile(
            f"{path} is no T5X checkpoint: it holds neither a file `{INDEX_FILE}` nor a complete "
            "folder checkpoint_N"
        )
    return steps[max(steps)]


def open_t5x(path: epath.PathLike, config: T5Config | None = None) -> Checkpoint:
    """Opens a T5X checkpoint without reading its weights.

    Args:
      path: path of a checkpoint's folder, or of a model's folder (its newest complete checkpoint).
      config: the architecture; by default it is inferred from names and shapes, and from a
        config.gin in the folder or its parent: activations (without the file gelu, or relu if there
        is no gate) and dropout rate (without the file 0).

    Returns:
      The checkpoint, with separate layers and attention kernels [in, out].

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the index is damaged, leads out of its folder, or does not fit the architecture.
    """
    folder = find_t5x(path)
    index = folder / INDEX_FILE
    tensors = _in_our_layout(_stored(_target(index), folder), index)
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


def _target(index: epath.Path) -> dict[str, Any]:
    """Reads the parameters in the index, skipping the state of the optimizer."""

    def keep(keys: tuple[str, ...]) -> bool:
        return keys == ("optimizer",) or keys[:2] == ("optimizer", "target") or keys[0] == "target"

    tree = index_msgpack(index, keep)
    target = tree.get("optimizer", tree)
    target = target.get("target") if isinstance(target, dict) else None
    if not isinstance(target, dict) or not target:
        raise InvalidFile(f"{index} holds no parameters: neither optimizer/target nor target")
    return target


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A tensor in T5X's layout; `read(layer)` returns [:, layer], `read(None)` the whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]


def _stored(target: dict[str, Any], folder: epath.Path) -> dict[str, _Stored]:
    """The unread tensors of the index by name."""
    # Layers of a scanned model share chunks: the cache avoids decompressing them once per layer
    # for arrays that are small enough.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    verified: set[str] = set()
    stored = {}
    for name, value in _leaves(target, ""):
        if is_specification(value):
            array = locate_zarr(value, folder, name)
            read = functools.partial(read_zarr, array, context=context, verified=verified)
            stored[name] = _Stored(array.shape, array.dtype, read)
        elif isinstance(value, StoredArray) and value.type_name in FLOAT_TYPES:
            read = functools.partial(_read_inline, folder / INDEX_FILE, value)
            stored[name] = _Stored(value.shape, FLOAT_TYPES[value.type_name], read)
        else:
            kind = value.type_name if isinstance(value, StoredArray) else repr(value)[:60]
            raise InvalidFile(
                f"{folder / INDEX_FILE}: {name} is {kind}, not floating-point weights"
            )
    return stored


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and not is_specification(value):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _read_inline(index: epath.Path, stored: StoredArray, layer: int | None) -> np.ndarray:
    array = read_array(index, stored)
    return array if layer is None else array[:, layer]


def _in_our_layout(stored: Mapping[str, _Stored], index: epath.Path) -> dict[str, Tensor]:
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
    name: str, leaf: _Stored, shape: tuple[int, ...], where: str, layer: int | None
) -> Tensor:
    """Joins heads: [embed, heads, dim] -> [embed, heads·dim], for `out` likewise."""
    if len(shape) == 3 and name.endswith(("/query/kernel", "/key/kernel", "/value/kernel")):
        shape = (shape[0], shape[1] * shape[2])
    elif len(shape) == 3 and name.endswith("/out/kernel"):
        shape = (shape[0] * shape[1], shape[2])
    return Tensor(shape, leaf.dtype, where, functools.partial(_read_shaped, leaf, layer, shape))


def _read_shaped(leaf: _Stored, layer: int | None, shape: tuple[int, ...]) -> np.ndarray:
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
    config: T5Config,
    params: Any,
    step: int = 0,
    sentencepiece: epath.PathLike | None = None,
    tokenizer_from: epath.PathLike | None = None,
) -> None:
    """Writes a checkpoint that T5X restores, atomically and tensor by tensor.

    It holds the parameters and the step, but no optimizer state: T5X evaluates and infers from it,
    and trains from it with `fallback_to_scratch`. Layers are not scanned; with a relative bias per
    layer the kernels have the shapes of scalable_t5 with `scan_layers=False`. T5X scales the logits
    of tied heads only: other scales are multiplied into an untied head, with the same logits. A
    config.gin beside the index holds the architecture.

    Args:
      directory: path of the new folder, e.g. …/checkpoint_1000, which must be missing or empty.
      config: the architecture.
      params: a nested dictionary of arrays, layers stacked or not, or `Tensor`s by name.
      step: training step to record in the checkpoint.
      sentencepiece: path of a sentencepiece model that is copied as spiece.model.
      tokenizer_from: path of a folder whose tokenizer files are copied.

    Raises:
      FileExistsError: the directory exists and is not empty.
      ValueError: parameters do not fit the architecture, or values are not finite.
      OSError: writing failed, e.g. because the disk is full; `directory` is not created.
    """
    tensors = as_tensors(params)
    check_tensors(tensors, config, "to be written")
    if config.scale_logits is not None:  # T5X scales tied heads and no others
        config, tensors = with_own_head(config, tensors)
    with atomic_folders.new_folder(directory) as folder:
        target = {}
        for name, tensor in tensors.items():
            array = _for_t5x(name, read_finite(tensor), config)
            target[name] = write_zarr(folder, f"target.{name.replace('/', '.')}", array)
        if tokenizer_from is not None:
            atomic_folders.copy_files(epath.Path(tokenizer_from), TOKENIZER_FILES, folder)
        if sentencepiece is not None and not (folder / VOCABULARY_FILES[0]).exists():
            (folder / VOCABULARY_FILES[0]).write_bytes(epath.Path(sentencepiece).read_bytes())
        (folder / GIN_FILE).write_text(_gin_of(config))
        state = {"step": np.asarray(step, np.int32)}
        index = {"version": 3, "optimizer": {"target": nest(target), "state": state}}
        (folder / INDEX_FILE).write_bytes(serialization.msgpack_serialize(index))


def _for_t5x(name: str, array: np.ndarray, config: T5Config) -> np.ndarray:
    if config.relative_bias_per_layer and "attention/" in name:
        heads = (config.num_heads, config.head_dim)
        if name.endswith("/out/kernel"):
            return array.reshape(*heads, array.shape[1])
        return array.reshape(array.shape[0], *heads)
    return array


def _gin_of(config: T5Config) -> str:
    example = "scalable_t5" if config.relative_bias_per_layer else "t5"
    lines = [f"from t5x.examples.{example} import network", ""]
    values = dataclasses.asdict(config)
    lines += [f"network.T5Config.{name} = {values[name]!r}" for name in _GIN_FIELDS]
    if config.relative_bias_per_layer:
        lines.append("network.T5Config.scan_layers = False")
    return "\n".join(lines) + "\n"
