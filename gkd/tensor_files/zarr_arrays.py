"""Reads the zarr arrays of T5X checkpoints with TensorStore, and writes them as gzip chunks."""

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
# Greatest compression ratios (1032 for deflate): a higher one is a false size or a bomb. The
# chunks of bz2, which has no limit, are decompressed before memory is allocated for the array.
_BEST_COMPRESSION = {"gzip": 1040, "zlib": 1040, "blosc": 260, "zstd": 40_000, None: 1}


@dataclasses.dataclass(frozen=True)
class ZarrArray:
    """A zarr array as the index of a checkpoint describes it.

    Attributes:
      root: folder of the checkpoint; paths out of it are refused.
      path: folder of the array, relative to `root`.
      shape: shape of the array.
      dtype: dtype of the array.
    """

    root: epath.Path
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype


def is_specification(value: Any) -> bool:
    """True if an entry of an index describes a TensorStore array."""
    return isinstance(value, dict) and {"driver", "kvstore"} <= set(value)


def locate_zarr(specification: Mapping[str, Any], root: epath.Path, name: str) -> ZarrArray:
    """Reads the location, shape and type of an array from its entry in an index.

    Args:
      specification: TensorStore specification as T5X wrote it; its path is relative to the index
        for every driver.
      root: folder of the index.
      name: name of the array in the index, for messages.

    Returns:
      The array's description.

    Raises:
      ValueError: the array is no zarr array of floats, or its path leaves `root`.
    """
    where = f"{root}: {name}"
    check_fields(specification, _SPECIFICATION, where)
    store, metadata = specification["kvstore"], specification["metadata"]
    check_fields(store, {"driver": Field(kinds=(str,), choices=_DRIVERS, required=True)}, where)
    # TensorStore before 0.1.14 wrote the path beside the store.
    paths = [store.get("path", ""), specification.get("path", "")]
    if not all(isinstance(path, str) for path in paths):
        raise InvalidFile(f"{root}: {name} has no path in the index")
    path = "/".join(path.rstrip("/") for path in paths if path)
    _check_path(root, path, name)
    shape = metadata.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise InvalidFile(f"{root}: {name} has no shape in the index: {shown(shape)}")
    types = {form: type_name for type_name, form in _ZARR_TYPES.items()}
    stored = str(metadata.get("dtype"))
    type_name = specification.get("dtype", types.get(stored, stored))
    if type_name not in FLOAT_TYPES:
        raise InvalidFile(
            f"{root}: {name} is of type {shown(type_name)}: weights are floating-point"
        )
    return ZarrArray(root, path, tuple(shape), FLOAT_TYPES[type_name])


def _check_path(root: epath.Path, path: str, name: str) -> None:
    parts = path.split("/")
    if not path.strip("/.") or path.startswith("/") or ".." in parts or re.search(r"[:\\\0]", path):
        raise InvalidFile(f"{root}: {name} has the path {path!r}, which leaves the folder: refused")
    check_inside(root, root / path, name)


def check_inside(root: epath.Path, path: epath.Path, name: str) -> None:
    """Refuses a local path that a symbolic link leads out of a folder.

    Args:
      root: path of the folder.
      path: path within it.
      name: name of what lies there, for the message.

    Raises:
      ValueError: the path leads out of the folder.
    """
    if is_remote(root):
        return
    home, target = os.path.realpath(root), os.path.realpath(path)  # epath's keeps links
    if os.path.commonpath([home, target]) != home:
        raise InvalidFile(f"{root}: {name} lies at {target}, outside of the folder: refused")


def is_remote(path: epath.Path) -> bool:
    """Returns True for paths in buckets, such as gs://."""
    return "://" in str(path)


def read_zarr(
    array: ZarrArray,
    layer: int | None = None,
    context: tensorstore.Context | None = None,
    verified: set[str] | None = None,
) -> np.ndarray:
    """Reads an array, or one layer of a stacked array.

    Args:
      array: description of the array, from `locate_zarr`.
      layer: index of the only layer to read, `array[:, layer]`; None reads all of them.
      context: TensorStore context, whose cache serves other layers of the same chunks.
      verified: paths of arrays whose chunks have been compared with their checksums; this array is
        added.

    Returns:
      The values.

    Raises:
      ValueError: a file is missing or damaged, or contradicts the index.
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
        raise InvalidFile(f"{where} cannot be opened: {first_line(error)}") from error
    compressor, chunk = _check_store(array, store, stored, where)
    if verified is None or where not in verified:
        check_chunks(folder, compressor, chunk, array.dtype.itemsize)
        if verified is not None:
            verified.add(where)
    try:
        return (store if layer is None else store[:, layer]).read(order="C").result()
    except Exception as error:
        raise InvalidFile(f"{where} is damaged or not complete: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Returns the first line of a TensorStore error, without the places in its source."""
    return str(error).split(" [")[0].splitlines()[0]


def _stored_bytes(array: ZarrArray) -> int:
    """Sums the sizes of the files in bytes, and refuses links that lead out of the folder."""
    total = 0
    for path in files_below(array.root / array.path):
        check_inside(array.root, path, array.path)
        total += path.stat().length
    return total


def _specification(array: ZarrArray) -> dict[str, Any]:
    if not is_remote(array.root):
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
    """Compares the array's own description with the index, before memory is allocated for it.

    Returns:
      Name of the compressor, and shape of the chunks.
    """
    if store.dtype.numpy_dtype != array.dtype or tuple(store.shape) != array.shape:
        raise InvalidFile(
            f"{where} is {store.dtype.name}{list(store.shape)}, but the index has "
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
    if any(size > max(1, whole) for size, whole in zip(chunk, array.shape, strict=True)):
        raise InvalidFile(f"{where} has chunks of {list(chunk)}, larger than {list(array.shape)}")
    return compressor, list(chunk)


def write_zarr(root: epath.Path, path: str, array: np.ndarray) -> dict[str, Any]:
    """Writes an array as T5X does, in chunks along the first axis.

    Args:
      root: folder of the checkpoint.
      path: folder of the array, relative to `root`; it is created.
      array: floating-point values.

    Returns:
      TensorStore specification for the index, with a path relative to `root`.

    Raises:
      ValueError: the type is no floating-point type.
      OSError: the files cannot be written, e.g. because the disk is full.
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
        chunk = array[number * rows : (number + 1) * rows]
        if len(chunk) < rows:  # all chunks have the same size
            padding = np.zeros((rows - len(chunk), *chunk.shape[1:]), chunk.dtype)
            chunk = np.concatenate([chunk, padding])
        name = ".".join([str(number), *["0"] * (array.ndim - 1)])
        (folder / name).write_bytes(gzip.compress(chunk.tobytes(), compresslevel=1, mtime=0))

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
