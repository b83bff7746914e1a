"""The zarr arrays of T5X's checkpoints: read with TensorStore, written as plain gzip chunks."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gzip
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from gkd.errors import InvalidFile
from gkd.files.json_files import Field, check_fields, shown
from gkd.tensor_files.msgpack_file import FLOAT_TYPES
from gkd.tensor_files.zarr_chunks import (
    DESCRIPTION_FILE,
    check_chunks,
    files_below,
    read_zarr_description,
)

_ZARR_TYPES = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}
_DRIVERS = ("file", "gfile", "gcs")
_COMPRESSOR = {"id": "gzip", "level": 1}
_CHUNK_BYTES = 1 << 25
_SPECIFICATION = {
    "driver": Field(kinds=(str,), choices=("zarr",), required=True),
    "kvstore": Field(kinds=(dict,), required=True),
    "metadata": Field(kinds=(dict,), required=True),
    "dtype": Field(kinds=(str,)),
}
_WRITING_THREADS = 4
# Deflate cannot do better than 1032 to 1, nor the others than this: more is a lie or a bomb. The
# chunks of bz2, which has no such limit, are decompressed before memory is taken for the array.
_BEST_COMPRESSION = {"gzip": 1040, "zlib": 1040, "blosc": 260, "zstd": 40_000, None: 1}


@dataclasses.dataclass(frozen=True)
class ZarrArray:
    """A zarr array as a checkpoint's index describes it.

    Attributes:
      root: the checkpoint's folder, which nothing may lead out of.
      path: the array's folder, relative to `root`.
      shape: its shape.
      dtype: its type.
    """

    root: epath.Path
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype


def is_specification(value: Any) -> bool:
    """Whether an index's entry describes a TensorStore array."""
    return isinstance(value, dict) and {"driver", "kvstore"} <= set(value)


def locate_zarr(specification: Mapping[str, Any], root: epath.Path, name: str) -> ZarrArray:
    """What an index says of an array. The path is relative to the index, whatever its driver.

    Args:
      specification: TensorStore's, as T5X wrote it; only place, shape and type are used.
      root: the folder of the index.
      name: the array's name there, for messages.

    Raises:
      ValueError: it is no zarr array of floats, or its path leaves `root`.
    """
    where = f"{root}: {name}"
    check_fields(specification, _SPECIFICATION, where)
    store, metadata = specification["kvstore"], specification["metadata"]
    check_fields(store, {"driver": Field(kinds=(str,), choices=_DRIVERS, required=True)}, where)
    # TensorStore before 0.1.14 had the path beside the store.
    parts = [store.get("path", ""), specification.get("path", "")]
    if not all(isinstance(part, str) for part in parts):
        raise InvalidFile(f"{root}: {name} has no path in the index")
    path = "/".join(part.rstrip("/") for part in parts if part)
    _check_path(root, path, name)
    shape = metadata.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise InvalidFile(f"{root}: {name} has no shape in the index: {shown(shape)}")
    types = {form: type_name for type_name, form in _ZARR_TYPES.items()}
    type_name = specification.get("dtype", types.get(str(metadata.get("dtype"))))
    if type_name not in FLOAT_TYPES:
        raise InvalidFile(
            f"{root}: {name} is of type {shown(type_name)}: weights are floating-point"
        )
    return ZarrArray(root, path, tuple(shape), FLOAT_TYPES[type_name])


def _check_path(root: epath.Path, path: str, name: str) -> None:
    parts = path.split("/")
    if not path.strip("/.") or path.startswith("/") or ".." in parts or re.search(r"[:\\\0]", path):
        raise InvalidFile(f"{root}: {name} has the path {path!r}, which leaves the folder: refused")
    _check_inside(root, root / path, name)


def _check_inside(root: epath.Path, path: epath.Path, name: str) -> None:
    """Refuses a local path that a symbolic link leads out of `root`."""
    if _is_remote(root):
        return
    home, target = os.path.realpath(root), os.path.realpath(path)  # epath's keeps links
    if os.path.commonpath([home, target]) != home:
        raise InvalidFile(f"{root}: {name} lies at {target}, outside of the folder: refused")


def _is_remote(path: epath.Path) -> bool:
    return "://" in str(path)


def read_zarr(
    array: ZarrArray,
    layer: int | None = None,
    context: tensorstore.Context | None = None,
    verified: set[str] | None = None,
) -> np.ndarray:
    """Reads an array, or one layer of a stacked one.

    Args:
      array: from `locate_zarr`.
      layer: reads `array[:, layer]` only.
      context: TensorStore's, whose cache then serves the other layers of the same chunks.
      verified: paths of arrays whose chunks were compared with their checksums; this one is added.

    Returns:
      The values.

    Raises:
      ValueError: a part is missing or damaged, or is not what the index says.
    """
    folder = array.root / array.path
    where = f"{folder}"
    if not (folder / DESCRIPTION_FILE).exists():
        raise InvalidFile(f"{where}/{DESCRIPTION_FILE} is missing: the checkpoint is not complete")
    stored = _stored_bytes(array)
    try:
        read_zarr_description(folder)
        store = tensorstore.open(_specification(array), context=context, open=True).result()
    except Exception as error:  # TensorStore raises many types for damaged metadata
        raise InvalidFile(f"{where} cannot be opened: {_first_line(error)}") from error
    compressor, chunk = _check_store(array, store, stored, where)
    if verified is None or where not in verified:
        check_chunks(folder, compressor, chunk, array.dtype.itemsize)
        if verified is not None:
            verified.add(where)
    try:
        return (store if layer is None else store[:, layer]).read(order="C").result()
    except Exception as error:
        raise InvalidFile(f"{where} is damaged or not complete: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).split(" [")[0].splitlines()[0]


def _stored_bytes(array: ZarrArray) -> int:
    """What the files take on the disk; none of them may be a link that leads elsewhere."""
    total = 0
    for path in files_below(array.root / array.path):
        _check_inside(array.root, path, array.path)
        total += path.stat().length
    return total


def _specification(array: ZarrArray) -> dict[str, Any]:
    if not _is_remote(array.root):
        store = {"driver": "file", "path": f"{os.path.abspath(array.root / array.path)}/"}
    else:
        scheme, _, rest = str(array.root).partition("://")
        if scheme != "gs":
            raise InvalidFile(
                f"{array.root}: T5X checkpoints are read from local folders and gs://"
            )
        bucket, _, folder = rest.partition("/")
        store = {"driver": "gcs", "bucket": bucket, "path": f"{folder}/{array.path}/"}
    return {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}


def _check_store(
    array: ZarrArray, store: Any, stored: int, where: str
) -> tuple[str | None, list[int]]:
    """Compares the array's own description with the index, before memory is taken for it.

    Returns:
      The name of its compressor and the shape of its chunks.
    """
    if store.dtype.numpy_dtype != array.dtype or tuple(store.shape) != array.shape:
        raise InvalidFile(
            f"{where} is {store.dtype.name}{list(store.shape)}, but the index says "
            f"{array.dtype.name}{list(array.shape)}"
        )
    metadata = store.spec().to_json()["metadata"]
    wanted = math.prod(array.shape) * array.dtype.itemsize
    compressor = (metadata.get("compressor") or {"id": None})["id"]
    most = _BEST_COMPRESSION.get(compressor)
    if most is not None and wanted > most * stored:
        raise InvalidFile(
            f"{where} claims {wanted} bytes, but {stored} bytes are there: truncated or damaged"
        )
    chunk = metadata["chunks"]
    if any(part > max(1, whole) for part, whole in zip(chunk, array.shape, strict=True)):
        raise InvalidFile(f"{where} has chunks of {list(chunk)}, larger than {list(array.shape)}")
    return compressor, list(chunk)


def write_zarr(root: epath.Path, path: str, array: np.ndarray) -> dict[str, Any]:
    """Writes an array in the form that T5X writes, chunks along the first axis.

    Args:
      root: the checkpoint's folder.
      path: the array's folder in it, which is made.
      array: floating-point values.

    Returns:
      TensorStore's specification for the index, its path relative to `root`.

    Raises:
      ValueError: it is not of a floating-point type.
      OSError: the disk is full, for instance.
    """
    type_name = array.dtype.name
    if type_name not in _ZARR_TYPES:
        raise InvalidFile(f"{path} is of type {type_name}: weights are floating-point")
    row = array.dtype.itemsize * max(1, math.prod(array.shape[1:]))
    rows = max(1, min(array.shape[0], _CHUNK_BYTES // row))
    chunks = [rows, *array.shape[1:]]
    folder = root / path
    folder.mkdir()

    def write(number: int) -> None:
        part = array[number * rows : (number + 1) * rows]
        if len(part) < rows:  # chunks are all of one size
            part = np.concatenate([part, np.zeros((rows - len(part), *part.shape[1:]), part.dtype)])
        name = ".".join([str(number), *["0"] * (array.ndim - 1)])
        (folder / name).write_bytes(gzip.compress(part.tobytes(), compresslevel=1, mtime=0))

    with concurrent.futures.ThreadPoolExecutor(_WRITING_THREADS) as pool:
        list(pool.map(write, range(math.ceil(array.shape[0] / rows))))
    description = {
        "chunks": chunks,
        "compressor": _COMPRESSOR,
        "dimension_separator": ".",
        "dtype": _ZARR_TYPES[type_name],
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps(description))
    return {
        "driver": "zarr",
        "dtype": type_name,
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": {"chunks": chunks, "compressor": _COMPRESSOR, "shape": list(array.shape)},
    }
