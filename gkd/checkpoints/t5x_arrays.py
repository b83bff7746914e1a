"""Finds T5X checkpoints on disk and lists their unread parameters, in T5X's own layout.

T5X writes one of two layouts: an index in msgpack with zarr arrays beside it (`checkpoint`), or
Orbax's item `state`, whose arrays lie in an OCDBT database or in zarr folders. Early Orbax has a
msgpack index too, whose leaves are placeholders. The state of the optimizer is never read.
Source: t5x/checkpoints.py, version 3, at https://github.com/google-research/t5x.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from gkd.checkpoints import folders
from gkd.errors import InvalidFile, MissingFile
from gkd.files.json_files import Field, check_fields, read_json, shown
from gkd.tensor_files.msgpack_file import FLOAT_TYPES, index_msgpack, read_array
from gkd.tensor_files.msgpack_file import StoredArray as InlineArray
from gkd.tensor_files.orbax_arrays import MANIFEST_FILE, StoredArray, open_folder
from gkd.tensor_files.zarr_arrays import is_specification, locate_zarr, read_zarr

INDEX_FILE = "checkpoint"
ORBAX_FILE = "_METADATA"
_STEP_FOLDER = re.compile(r"checkpoint_(\d+)")
_CACHE_BYTES = 1 << 28
_UNFINISHED = ".orbax-checkpoint-tmp"
_PLACEHOLDER = "PLACEHOLDER://"
_ORBAX_FIELDS = {
    "tree_metadata": Field(kinds=(dict,), required=True),
    "use_zarr3": Field(kinds=(bool,), none=True),
}
_ENTRY_FIELDS = {"key_metadata": Field(kinds=(list,), least=1, most=64, required=True)}
_KEY_FIELDS = {"key": Field(kinds=(str,), most=1000, required=True)}


def is_t5x(path: epath.PathLike) -> bool:
    """Returns True if `path` is the folder of a T5X checkpoint, or of a model with checkpoints."""
    return _is_complete(epath.Path(path)) or bool(_steps(epath.Path(path)))


def find_t5x(path: epath.PathLike) -> epath.Path:
    """Finds the folder of a T5X checkpoint.

    Args:
      path: path of a checkpoint's folder or its folder `state`, or of a model's folder with
        complete checkpoints.

    Returns:
      The checkpoint's folder, the newest complete one of a model.

    Raises:
      FileNotFoundError: the path does not exist.
      ValueError: the folder holds no complete checkpoint.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingFile(f"checkpoint {path}: there is no such folder")
    if path.name == folders.STATE_ITEM and _orbax_item(path) == path:
        return path.parent
    if _is_complete(path):
        return path
    steps = _steps(path)
    if not steps:
        raise InvalidFile(
            f"{path} is no T5X checkpoint: it holds neither a file `{INDEX_FILE}`, nor Orbax's "
            f"item `{folders.STATE_ITEM}`, nor a complete folder checkpoint_N"
        )
    return steps[max(steps)]


def _is_complete(folder: epath.Path) -> bool:
    return _orbax_item(folder) is not None or _has_index(folder)


def _has_index(folder: epath.Path) -> bool:
    index = folder / INDEX_FILE
    if not index.exists() or index.is_dir():
        return False
    with index.open("rb") as file:  # TensorFlow has a text file of that name
        return not file.read(64).startswith(b"model_checkpoint_path")


def _orbax_item(folder: epath.Path) -> epath.Path | None:
    """The Orbax item of a complete checkpoint that is no step of a run of this program."""
    if _UNFINISHED in folder.name:
        return None
    for item in (folder / folders.STATE_ITEM, folder):
        files = (ORBAX_FILE, MANIFEST_FILE, *([INDEX_FILE] if item != folder else []))
        if item.is_dir() and any((item / name).exists() for name in files):
            return None if (item.parent / folders.DESCRIPTION_ITEM).exists() else item
    return None


def _steps(folder: epath.Path) -> dict[int, epath.Path]:
    """The complete checkpoints in a model's folder; T5X writes the index last."""
    if not folder.is_dir():
        return {}
    matches = {path: _STEP_FOLDER.fullmatch(path.name) for path in folder.iterdir()}
    return {
        int(match.group(1)): path for path, match in matches.items() if match and _is_complete(path)
    }


def describe_orbax(folder: epath.Path) -> str:
    """Describes a folder of Orbax that is no checkpoint of T5X.

    Args:
      folder: path of a folder that `is_t5x` is not true for.

    Returns:
      A clause that begins with ': '; empty if Orbax did not write the folder.
    """
    for path in (folder, *sorted(folder.iterdir())):
        if _UNFINISHED in path.name:
            return f": Orbax did not finish writing {path.name}"
        if any((path / name).exists() for name in (ORBAX_FILE, MANIFEST_FILE)):
            return f": its item `{path.name}` is an Orbax checkpoint of another program than T5X"
    return ""


def open_arrays(folder: epath.Path) -> tuple[epath.Path, dict[str, StoredArray]]:
    """Lists the parameters of a checkpoint without reading them.

    Args:
      folder: a folder of `find_t5x`.

    Returns:
      The path of the index, for messages, and the unread arrays by name: keys joined by '/'.

    Raises:
      ValueError: the index is damaged, leads out of its folder, or holds no parameters.
    """
    item = _orbax_item(folder)
    if item is None:
        return folder / INDEX_FILE, _indexed_arrays(folder)
    if (item / ORBAX_FILE).exists():
        return item, _orbax_arrays(item)
    if not (item / INDEX_FILE).exists():
        raise InvalidFile(f"{item / ORBAX_FILE} is missing: the checkpoint is not complete")
    return item / INDEX_FILE, _indexed_arrays(item)


def _orbax_arrays(item: epath.Path) -> dict[str, StoredArray]:
    """The parameters that Orbax's description of an item lists."""
    path = item / ORBAX_FILE
    description = read_json(path, dict)  # within bounds, unlike Orbax
    check_fields(description, _ORBAX_FIELDS, path)
    names, others = {}, set()
    for entry in description["tree_metadata"].values():
        if not isinstance(entry, dict):
            raise InvalidFile(f"{path} is damaged: {shown(entry)} describes no array")
        check_fields(entry, _ENTRY_FIELDS, path)
        keys = []
        for key in entry["key_metadata"]:
            if not isinstance(key, dict):
                raise InvalidFile(f"{path} is damaged: {shown(key)} is no key")
            check_fields(key, _KEY_FIELDS, path)
            keys.append(key["key"])
        inner = keys[1:] if keys[0] == "optimizer" else keys
        if inner[:1] == ["target"] and len(inner) > 1:
            names["/".join(inner[1:])] = ".".join(keys)
        else:
            others.add(keys[0])
    if not names:
        raise InvalidFile(
            f"{item} holds no `target`, but {', '.join(sorted(others)) or 'nothing'}: it is an "
            "Orbax checkpoint of another program than T5X"
        )
    arrays = open_folder(item, description.get("use_zarr3") is True)
    return {name: arrays.open(stored) for name, stored in names.items()}


def _indexed_arrays(folder: epath.Path) -> dict[str, StoredArray]:
    """The parameters in an index in msgpack: inline, as TensorStore specifications, or by name."""
    # Layers of a scanned model share chunks: the cache avoids decompressing them once per layer
    # for arrays that are small enough.
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    verified: set[str] = set()
    index = folder / INDEX_FILE
    beside = functools.cache(lambda: open_folder(folder, is_zarr3=False))
    stored = {}
    for name, value in _leaves(_target(index), ""):
        if is_specification(value):
            array = locate_zarr(value, folder, name)
            read = functools.partial(read_zarr, array, context=context, verified=verified)
            stored[name] = StoredArray(array.shape, array.dtype, read)
        elif isinstance(value, InlineArray) and value.type_name in FLOAT_TYPES:
            read = functools.partial(_read_inline, index, value)
            stored[name] = StoredArray(value.shape, FLOAT_TYPES[value.type_name], read)
        elif isinstance(value, str) and value.startswith(_PLACEHOLDER):
            stored[name] = beside().open(value.removeprefix(_PLACEHOLDER))
        else:
            kind = value.type_name if isinstance(value, InlineArray) else repr(value)[:60]
            raise InvalidFile(f"{index}: {name} is {kind}, not floating-point weights")
    return stored


def _target(index: epath.Path) -> Mapping[str, Any]:
    """Reads the parameters in the index, skipping the state of the optimizer."""

    def keep(keys: tuple[str, ...]) -> bool:
        return keys == ("optimizer",) or keys[:2] == ("optimizer", "target") or keys[0] == "target"

    tree = index_msgpack(index, keep)
    target = tree.get("optimizer", tree)
    target = target.get("target") if isinstance(target, dict) else None
    if not isinstance(target, dict) or not target:
        raise InvalidFile(f"{index} holds no parameters: neither optimizer/target nor target")
    return target


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and not is_specification(value):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _read_inline(index: epath.Path, stored: InlineArray, layer: int | None) -> np.ndarray:
    array = read_array(index, stored)
    return array if layer is None else array[:, layer]
