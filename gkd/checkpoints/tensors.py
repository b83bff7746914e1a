"""A checkpoint as named tensors that are read one at a time: what every format is turned into."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from gkd.errors import InvalidFile
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.tensor_files.tensor import Tensor
from gkd.vocabularies.tokenizer_files import TokenizerFiles

_SHOWN_NAMES = 5
_LAYER = re.compile(r"/layers_(\d+)/")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any format, opened but not read.

    Attributes:
      path: the folder that holds it.
      format: 'huggingface', 't5x' or 'gkd'.
      config: the architecture; layers are not stacked.
      tensors: by name, 'encoder/layers_0/attention/query/kernel': T5X's names joined by '/'.
      vocabulary: the sentencepiece model that lies beside it; None where there is none.
      bytes_vocabulary: whether the checkpoint says that its ids are bytes (ByT5).
      sentinels: how many ids its tokenizer adds after the sentencepiece's own.
      tokenizer: the description by the tokenizer files beside it; None where nobody looked.
      description: what the run that wrote it said of it (this project's format), else None.
      chosen: which step of a run it is, and why, in words; empty for other formats.
    """

    path: epath.Path
    format: str
    config: T5Config
    tensors: Mapping[str, Tensor]
    vocabulary: epath.Path | None = None
    bytes_vocabulary: bool = False
    sentinels: int = 100
    tokenizer: TokenizerFiles | None = None
    description: Mapping[str, Any] | None = None
    chosen: str = ""


def tensor_names(tree: Any) -> dict[str, Any]:
    """A nested dictionary's leaves by name: 'encoder/encoder_norm/scale'."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `tensor_names`."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


@functools.lru_cache(maxsize=8)
def expected_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of an architecture, its layers unstacked."""
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    one = dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 1)  # all layers are alike
    model = as_seq2seq(dataclasses.replace(config, stacked_layers=False, remat=False, **one))
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    shapes = {}
    for name, leaf in tensor_names(nn.meta.unbox(boxed)).items():
        depth = depths[name.split("/")[0]] if "/layers_0/" in name else 1
        for i in range(depth):
            shapes[name.replace("/layers_0/", f"/layers_{i}/", 1)] = leaf.shape
    return shapes


def check_tensors(tensors: Mapping[str, Tensor], config: T5Config, where: Any) -> None:
    """Compares a checkpoint's tensors with those of an architecture.

    Args:
      tensors: the checkpoint's.
      config: the architecture.
      where: the checkpoint, for the message.

    Raises:
      ValueError: what is missing, what is left over, what has another shape: one line.
    """
    expected = expected_shapes(config)
    missing = [name for name in expected if name not in tensors]
    left_over = [tensor.where for name, tensor in tensors.items() if name not in expected]
    reshaped = [
        f"{name} is {list(tensors[name].shape)}, wanted {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    parts = [("missing", missing), ("left over", left_over), ("wrong shape", reshaped)]
    found = [f"{kind}: {_listed(names)}" for kind, names in parts if names]
    if found:
        raise InvalidFile(f"checkpoint {where} does not fit its architecture: {'; '.join(found)}")


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def as_tensors(params: Any) -> dict[str, Tensor]:
    """Parameters in memory as named tensors, their layers unstacked; `Tensor`s stay as they are.

    Args:
      params: a nested dictionary of NumPy or JAX arrays, boxed or not, or names to `Tensor`s.
    """
    named = dict(params)
    if not all(isinstance(value, Tensor) for value in named.values()):
        named = {
            name: Tensor(leaf.shape, np.dtype(leaf.dtype), name, lambda leaf=leaf: np.asarray(leaf))
            for name, leaf in tensor_names(nn.meta.unbox(params)).items()
        }
    return unstacked(named)


def read_finite(tensor: Tensor) -> np.ndarray:
    """Reads one tensor and refuses NaN and infinity.

    Raises:
      ValueError: a value is not finite, or the file holds another shape than it announced.
    """
    array = tensor.read()
    if tuple(array.shape) != tuple(tensor.shape):
        raise InvalidFile(f"{tensor.where} is {list(array.shape)}, announced {list(tensor.shape)}")
    # One pass and no copy: the sum of finite values is finite (in float64), else something is not.
    if not np.isfinite(np.sum(array, dtype=np.float64)):
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise InvalidFile(f"{tensor.where} has {bad} of {array.size} values that are not finite")
    return array


def read_numpy(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """All tensors as a nested dictionary of NumPy arrays in the file's dtypes."""
    return nest({name: read_finite(tensor) for name, tensor in tensors.items()})


def read_onto(tensors: Mapping[str, Tensor], wanted: Any) -> Any:
    """Reads tensors onto devices, one at a time: each device receives its shard only.

    Args:
      tensors: that fit the architecture (`check_tensors`).
      wanted: a nested dictionary of `jax.ShapeDtypeStruct`s with shardings; a subtree `layers`
        receives the layers stacked along a new first axis.

    Returns:
      `wanted`'s structure with arrays in its dtypes and shardings.
    """
    names = tensor_names(wanted)
    arrays = {}
    for name, leaf in names.items():
        if name in tensors:
            arrays[name] = _place(read_finite(tensors[name]), leaf)
        else:
            arrays[name] = _place_stacked(tensors, name, leaf)
    return jax.tree.unflatten(jax.tree.structure(wanted), list(arrays.values()))


def _place(array: np.ndarray, leaf: Any) -> jax.Array:
    # A copy where nothing is converted: the CPU backend may otherwise keep `array` itself.
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: np.array(array[index], leaf.dtype, order="C")
    )


def _place_stacked(tensors: Mapping[str, Tensor], name: str, leaf: Any) -> jax.Array:
    """Layer by layer into one array: at most one layer's tensor is held beside the result."""
    result = np.empty(leaf.shape, leaf.dtype)
    for i in range(leaf.shape[0]):
        layer = name.replace("/layers/", f"/layers_{i}/", 1)
        result[i] = read_finite(tensors[layer])
    return _place(result, leaf)


def unstacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose layers are stacked along the first axis (`layers/…`) -> one tensor a layer.

    In the order of the result each stack is read once: the last one read is kept.
    """
    read = functools.lru_cache(maxsize=1)(lambda name: tensors[name].read())
    result = {}
    for name, tensor in tensors.items():
        if "/layers/" not in name:
            result[name] = tensor
            continue
        for i in range(tensor.shape[0]):
            result[name.replace("/layers/", f"/layers_{i}/", 1)] = Tensor(
                tuple(tensor.shape[1:]),
                tensor.dtype,
                f"{tensor.where}[{i}]",
                lambda name=name, i=i: read(name)[i],
            )
    return result


def layer_count(names: Any, side: str) -> int:
    """How many layers the encoder or decoder has, by its tensors' names."""
    numbers = [_LAYER.search(name) for name in names if name.startswith(side + "/")]
    return 1 + max((int(found.group(1)) for found in numbers if found), default=-1)
