"""Reads the arrays of a step folder onto devices or as NumPy, and describes differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from gkd.checkpoints import folders
from gkd.errors import InvalidFile
from gkd.files.json_files import read_json

_SHOWN_DIFFERENCES = 5
_ORBAX_METADATA = "_METADATA"


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the tree's leaves by name, `params/decoder/...`: the same for a struct and a dict."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def read_saved_shapes(folder: epath.PathLike) -> Any:
    """Reads the shapes and types of a saved state.

    Args:
      folder: path of a step folder.

    Returns:
      A nested dict (with lists for tuples) of `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: Orbax's metadata of the state is damaged.
    """
    folders.silence_orbax()
    state = epath.Path(folder) / folders.STATE_ITEM
    if (state / _ORBAX_METADATA).exists():
        read_json(state / _ORBAX_METADATA, dict)  # within bounds, unlike Orbax
    try:
        tree = ocp.PyTreeCheckpointHandler().metadata(state).tree
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidFile(f"{state} has a damaged {_ORBAX_METADATA}: {error!r}") from error
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(getattr(leaf, "shape", ()), leaf.dtype), tree
    )


def describe_differences(saved: Any, wanted: Any, compare_types: bool) -> str | None:
    """Compares a checkpoint's tensors with those that a program needs.

    Args:
      saved: the tree of `read_saved_shapes`, or a subtree.
      wanted: a tree of arrays or of `jax.ShapeDtypeStruct`s.
      compare_types: count another dtype as a difference too.

    Returns:
      None if they agree, else one line that lists up to five differences and counts the others.
    """
    saved, wanted = _named_leaves(saved), _named_leaves(wanted)

    def form(leaf: Any) -> str:
        return (
            f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
            if compare_types
            else f"{list(leaf.shape)}"
        )

    differences = [
        f"{name} has {form(saved[name])}, wanted {form(wanted[name])}"
        for name in wanted
        if name in saved and form(saved[name]) != form(wanted[name])
    ]
    differences += [f"{name} is missing" for name in wanted if name not in saved]
    differences += [f"{name} is left over" for name in saved if name not in wanted]
    if not differences:
        return None
    more = len(differences) - _SHOWN_DIFFERENCES
    shown = "; ".join(differences[:_SHOWN_DIFFERENCES])
    return f"{shown}; and {more} more differences" if more > 0 else shown


def _as_abstract(leaf: Any) -> Any:
    """Adds to a leaf the place to restore to: its own sharding, NumPy, or the first device."""
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(leaf)
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def read_arrays(folder: epath.PathLike, wanted: Any) -> Any:
    """Reads the part of a saved state that `wanted` names, and nothing else.

    Args:
      folder: path of a step folder without differences from `wanted`.
      wanted: a tree of arrays or `jax.ShapeDtypeStruct`s, whose structure, dtypes and shardings the
        result has. NumPy leaves are restored as NumPy.

    Returns:
      The restored tree.
    """
    folders.silence_orbax()
    item = jax.tree.map(_as_abstract, wanted)
    arguments = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(epath.Path(folder).resolve() / folders.STATE_ITEM, args=arguments)


def read_restacked(folder: epath.PathLike, saved: Any, wanted: Any) -> Any | None:
    """Reads a state whose layers were saved stacked and are wanted apart, or the other way round.

    Args:
      folder: path of a step folder.
      saved: the tree of `read_saved_shapes`.
      wanted: a training state of `jax.ShapeDtypeStruct`s with shardings.

    Returns:
      The state as `wanted`; None where the saved one differs in more than the form of its layers.
    """
    on_disk, leaves = _named_leaves(saved), _named_leaves(wanted)
    to_stacks = _has_stacks(leaves)
    if to_stacks == _has_stacks(on_disk):
        return None
    stacks = _stacked_leaves(leaves if to_stacks else on_disk)
    needed = {}
    for stack in stacks:
        if stack.apart == [stack.name]:
            needed[stack.name] = leaves.get(stack.name)
        elif to_stacks:
            needed |= dict.fromkeys(stack.apart, _with_axis(leaves[stack.name], None))
        else:
            layer, count = leaves.get(stack.apart[0]), on_disk[stack.name].shape[0]
            needed[stack.name] = None if layer is None else _with_axis(layer, count)
    if None in needed.values() or describe_differences(on_disk, needed, compare_types=True):
        return None
    read = _named_leaves(read_arrays(folder, _map_named(lambda name, _: needed[name], saved)))
    found = {}
    for stack in stacks:
        if stack.apart == [stack.name]:
            found[stack.name] = read[stack.name]
        elif to_stacks:
            found[stack.name] = _stack([read[name] for name in stack.apart], leaves[stack.name])
        elif stack.has_layers:
            found |= {
                name: jax.jit(lambda x, i=i: x[i], out_shardings=leaves[name].sharding)(
                    read[stack.name]
                )
                for i, name in enumerate(stack.apart)
            }
    return (
        _map_named(lambda name, _: found[name], wanted) if leaves.keys() <= found.keys() else None
    )


def _map_named(function, tree):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )


def _has_stacks(leaves):
    return any("/layers/" in name for name in leaves)


def _stack(parts, wanted):
    """The leaves of all layers as one array, or repeats of the one that all layers share."""
    make = jnp.stack
    if len(parts) < wanted.shape[0]:
        make = lambda parts: jnp.broadcast_to(parts[0], wanted.shape)  # noqa: E731
    return jax.jit(make, out_shardings=wanted.sharding)(parts)


def _with_axis(leaf, layers):
    """The abstract leaf with a first axis of that size, or without its own where it is None."""
    shape = leaf.shape[1:] if layers is None else (layers, *leaf.shape)
    sharding = leaf.sharding
    if isinstance(sharding, NamedSharding):
        spec = sharding.spec[1:] if layers is None else (None, *sharding.spec)
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """A leaf of a stacked state: its name, and the names of what it is made of.

    Attributes:
      name: its name.
      apart: the names of one leaf per layer; of one that is the same for all layers (a count); or
        its own, if it is no stack.
      has_layers: True for one leaf per layer.
    """

    name: str
    apart: list[str]
    has_layers: bool


def _stacked_leaves(leaves: Mapping[str, Any]) -> list[_Stacked]:
    """The leaves of a stacked state.

    `optimizers.per_layer` keeps the states of a stack under `stacks/encoder/layers/STATE/LEAF`,
    and those of other parameters under `rest/STATE/PATH`.
    """
    inside = {
        name.partition("/layers/")[2]
        for name in leaves
        if "/layers/" in name and "/stacks/" not in name
    }
    found = []
    for name, leaf in leaves.items():
        before, stacked, within = name.partition("/layers/")
        if not stacked:
            found.append(_Stacked(name, [name], False))
            continue
        before, kept_apart, side = before.partition("/stacks/")
        place = f"{before}/layers_"
        if kept_apart:
            parts = within.split("/")
            ends = ["/".join(parts[i:]) for i in range(len(parts))]
            inner = next((end for end in ends if end in inside), None)
            if inner is None:
                found.append(_Stacked(name, [f"{before}/rest/{within}"], False))
                continue
            place = f"{before}/rest/{within.removesuffix(inner)}{side}/layers_"
            within = inner
        names = [f"{place}{i}/{within}" for i in range(leaf.shape[0])]
        found.append(_Stacked(name, names, True))
    return found
