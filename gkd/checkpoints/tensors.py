"""The common form of checkpoints of all formats: named tensors that are read one at a time."""

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
from flax.traverse_util import unflatten_dict

from gkd.errors import InvalidFile
from gkd.models.architecture import Architecture
from gkd.tensor_files.tensor import Tensor
from gkd.vocabularies.tokenizer_files import TokenizerFiles

_SHOWN_NAMES = 5
_LAYER = re.compile(r"/layers_(\d+)/")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint of any format, whose tensors are unread.

    Attributes:
      path: path of its folder.
      format: 'huggingface', 't5x' or 'gkd'.
      config: the architecture; layers are not stacked.
      tensors: tensors by T5X's names joined by '/': 'encoder/layers_0/attention/query/kernel'.
      vocabulary: path of the sentencepiece model beside it, or None.
      bytes_vocabulary: true if the checkpoint declares that its ids are bytes (ByT5).
      sentinels: number of ids that its tokenizer adds after those of the sentencepiece.
      tokenizer: description of the tokenizer files beside it; None if they were not read.
      description: description by the run that wrote it (gkd's format), else None.
      chosen: the step of a run and the reason for it, in words; empty for other formats.
      source: OWNER/NAME@COMMIT of a model of the Hugging Face Hub; empty for others.
      adapters: description of a run's adapters (`saved_adapters.SavedAdapters`), else None.
      adapter_tensors: the adapters' own tensors, where `tensors` are those of the whole model.
      digest: identity of a run's step when it was opened, see `hashes.digest_of`, else None.
    """

    path: epath.Path
    format: str
    config: Architecture
    tensors: Mapping[str, Tensor]
    vocabulary: epath.Path | None = None
    bytes_vocabulary: bool = False
    sentinels: int = 100
    tokenizer: TokenizerFiles | None = None
    description: Mapping[str, Any] | None = None
    chosen: str = ""
    source: str = ""
    adapters: Any = None
    adapter_tensors: Mapping[str, Tensor] | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The name by which the same weights are opened again: OWNER/NAME@COMMIT, or the path."""
        return self.source or str(self.path)


def tensor_names(tree: Any) -> dict[str, Any]:
    """Flattens a nested dictionary to leaves by name.

    Args:
      tree: nested dictionary, or another pytree.

    >>> tensor_names({"encoder": {"encoder_norm": {"scale": 1.0}}})
    {'encoder/encoder_norm/scale': 1.0}
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Builds the nested dictionary of named leaves, the inverse of `tensor_names`.

    Args:
      named: leaves by name.

    >>> nest({"encoder/encoder_norm/scale": 1.0})
    {'encoder': {'encoder_norm': {'scale': 1.0}}}
    """
    return unflatten_dict(dict(named), sep="/")


def check_tensors(tensors: Mapping[str, Tensor], config: Architecture, where: Any) -> None:
    """Compares a checkpoint's tensors with those of an architecture.

    Args:
      tensors: tensors of the checkpoint by name.
      config: the architecture.
      where: path of the checkpoint, for the message.

    Raises:
      ValueError: tensors are missing, left over, or of another shape.
    """
    expected = config.parameter_shapes()
    missing = [name for name in expected if name not in tensors]
    left_over = [tensor.where for name, tensor in tensors.items() if name not in expected]
    reshaped = [
        f"{name} is {list(tensors[name].shape)}, wanted {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    kinds = [("missing", missing), ("left over", left_over), ("wrong shape", reshaped)]
    faults = [f"{kind}: {_listed(names)}" for kind, names in kinds if names]
    if faults:
        raise InvalidFile(f"checkpoint {where} does not fit its architecture: {'; '.join(faults)}")


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def as_tensors(params: Any) -> dict[str, Tensor]:
    """Converts parameters to named tensors with layers unstacked.

    Args:
      params: a nested dictionary of NumPy or JAX arrays, boxed or not, or `Tensor`s by name, which
        are kept.

    Returns:
      Tensors by name.
    """
    named = dict(params)
    if not all(isinstance(value, Tensor) for value in named.values()):
        named = {
            name: Tensor(leaf.shape, np.dtype(leaf.dtype), name, lambda leaf=leaf: np.asarray(leaf))
            for name, leaf in tensor_names(nn.meta.unbox(params)).items()
        }
    return unstacked(named)


def read_finite(tensor: Tensor) -> np.ndarray:
    """Reads one tensor, and refuses NaN and infinities.

    Args:
      tensor: an unread tensor.

    Returns:
      The array.

    Raises:
      ValueError: a value is not finite, or the shape differs from the announced one.
    """
    array = tensor.read()
    if tuple(array.shape) != tuple(tensor.shape):
        raise InvalidFile(f"{tensor.where} is {list(array.shape)}, announced {list(tensor.shape)}")
    # One pass without a copy: the float64 sum is finite only if all values are.
    with np.errstate(invalid="ignore", over="ignore"):
        is_finite = np.isfinite(np.sum(array, dtype=np.float64))
    bad = 0 if is_finite else int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise InvalidFile(f"{tensor.where} has {bad} of {array.size} values that are not finite")
    return array


def read_numpy(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads all tensors as a nested dictionary of NumPy arrays in the file's dtypes.

    Args:
      tensors: tensors by name.

    Raises:
      ValueError: a value is not finite.
    """
    return nest({name: read_finite(tensor) for name, tensor in tensors.items()})


def read_onto(tensors: Mapping[str, Tensor], wanted: Any) -> Any:
    """Reads tensors onto devices, one at a time; each device receives only its shard.

    Args:
      tensors: tensors by name that fit the architecture (`check_tensors`).
      wanted: a nested dictionary of `jax.ShapeDtypeStruct`s with shardings; a subtree `layers`
        receives the layers stacked along a new first axis.

    Returns:
      Arrays with the structure, dtypes and shardings of `wanted`.
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
    # Always a copy: without a conversion the CPU backend might keep `array` itself.
    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: np.array(array[index], leaf.dtype, order="C")
    )


def _place_stacked(tensors: Mapping[str, Tensor], name: str, leaf: Any) -> jax.Array:
    """Stacks layers one by one, holding at most one layer's tensor beside the result."""
    result = np.empty(leaf.shape, leaf.dtype)
    for i in range(leaf.shape[0]):
        layer = name.replace("/layers/", f"/layers_{i}/", 1)
        result[i] = read_finite(tensors[layer])
    return _place(result, leaf)


def unstacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Splits tensors that are stacked along the first axis (`layers/…`) into one per layer.

    Read in the order of the result, each stack is read once: the last one is cached.

    Args:
      tensors: tensors by name.

    Returns:
      Tensors by name, with `layers_0/…`, `layers_1/…` in place of `layers/…`.
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
                stack=tensor.where,
            )
    return result


def layer_count(names: Any, side: str) -> int:
    """Counts the layers of the encoder or decoder by the names of its tensors.

    Args:
      names: names of tensors.
      side: 'encoder' or 'decoder'.

    >>> layer_count(["encoder/layers_0/mlp/wo/kernel", "encoder/layers_1/mlp/wo/kernel"], "encoder")
    2
    """
    matches = [_LAYER.search(name) for name in names if name.startswith(side + "/")]
    return 1 + max((int(match.group(1)) for match in matches if match), default=-1)
