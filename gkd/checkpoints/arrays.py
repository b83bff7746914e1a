"""Reads the arrays of a step folder onto devices or as NumPy, and describes differences."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

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
