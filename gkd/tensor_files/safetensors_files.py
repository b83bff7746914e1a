"""Reads and writes safetensors files tensor by tensor, on any file system that etils supports.

The format (https://github.com/huggingface/safetensors): the header's length as 8 little-endian
bytes, the header as JSON, then the tensors' bytes, row-major, without gaps.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from gkd.errors import InvalidFile, MissingFile
from gkd.files.json_files import Field, check_fields, parse_json, shown
from gkd.tensor_files.tensor import Tensor

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BLOCK_BYTES = 1 << 24
_LONGEST_HEADER = 100_000_000  # the format's own limit
_ENTRY = {
    "dtype": Field(kinds=(str,), required=True),
    "shape": Field(kinds=(list,), most=8, required=True),
    "data_offsets": Field(kinds=(list,), least=2, most=2, required=True),
}


def open_safetensors(path: epath.PathLike) -> dict[str, Tensor]:
    """Reads the header of a file, and checks it against the size of the file.

    Args:
      path: path of the file.

    Returns:
      The unread tensors by name.

    Raises:
      ValueError: the file is no safetensors file, is truncated, or has contradictory sizes.
      FileNotFoundError: there is no such file.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingFile(f"{path} does not exist: the checkpoint is not complete")
    size = path.stat().length
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise InvalidFile(
                f"{path} is no safetensors file or is truncated: {size} bytes, header of {length}"
            )
        header = _parse(file.read(length), path)
    return _tensors(header, path, 8 + length, size)


def _parse(text: bytes, path: epath.Path) -> dict[str, Any]:
    try:
        header = parse_json(text, "header")
    except ValueError as error:
        raise InvalidFile(f"{path} has a damaged header: {error}") from error
    if not isinstance(header, dict):
        raise InvalidFile(f"{path} has a damaged header: not a table of tensors")
    metadata = header.pop("__metadata__", None) or {}
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise InvalidFile(f"{path} has a damaged header: __metadata__ is {shown(metadata)}")
    unclear = next((name for name in header if not name.isprintable()), None)
    if unclear is not None:
        raise InvalidFile(f"{path} has a damaged header: a tensor's name is {shown(unclear)}")
    return header


def _tensors(header: dict[str, Any], path: epath.Path, start: int, size: int) -> dict[str, Tensor]:
    tensors, spans = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise InvalidFile(f"{path} has a damaged entry for {name}: {shown(entry)}")
        check_fields(entry, _ENTRY, f"{path} has a damaged entry for {name}")
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise InvalidFile(
                f"{path}: {name} is {shown(entry['dtype'])}; weights are one of "
                f"{', '.join(_DTYPES)}"
            )
        dtype = _DTYPES[entry["dtype"]]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise InvalidFile(
                f"{path}: {name} has shape {shown(list(shape))} at bytes {shown([begin, end])}"
            )
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise InvalidFile(
                f"{path}: {name} of shape {shown(list(shape))} and type {entry['dtype']} cannot be "
                f"{end - begin} bytes"
            )
        if start + end > size:
            raise InvalidFile(
                f"{path} is truncated or damaged: {name} would end at byte {start + end} of {size}"
            )
        spans.append((begin, end, name))
        read = functools.partial(_read, path, start + begin, shape, dtype)
        tensors[name] = Tensor(shape, dtype, f"{path}: {name}", read, (path, start + begin))
    _check_cover(spans, size - start, path)
    return tensors


def _check_cover(spans: list[tuple[int, int, str]], size: int, path: epath.Path) -> None:
    """Refuses spans unless every byte of the file's data belongs to exactly one tensor."""
    reached, before = 0, "the header"
    for begin, end, name in [*sorted(spans), (size, size, "the end of the file")]:
        if begin < reached:
            raise InvalidFile(f"{path} is damaged: {before} and {name} share bytes")
        if begin > reached:
            raise InvalidFile(
                f"{path} is damaged: {begin - reached} bytes between {before} and {name} belong to "
                "no tensor"
            )
        reached, before = end, name


def _read(path: epath.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    view = memoryview(array.reshape(-1).view(np.uint8))
    with path.open("rb") as file:
        file.seek(offset)
        filled = 0
        while filled < len(view):
            count = file.readinto(view[filled:])
            if not count:
                raise InvalidFile(
                    f"{path} ended while it was read: was it truncated in the meantime?"
                )
            filled += count
    return array


def same_values(first: Tensor, second: Tensor) -> bool:
    """Compares two tensors in files bit by bit, in blocks if their places are known.

    Args:
      first, second: unread tensors.

    Returns:
      True if shapes, types and bits are equal.

    Raises:
      ValueError: a file has become shorter.
    """
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return False
    if first.read is second.read:
        return True
    if first.place is None or second.place is None:
        bits = np.dtype(f"u{first.dtype.itemsize}")
        return np.array_equal(first.read().view(bits), second.read().view(bits))
    (path, offset), (other_path, other_offset) = first.place, second.place
    size = byte_size(first)
    for done in range(0, size, _BLOCK_BYTES):
        shape = (min(_BLOCK_BYTES, size - done),)
        block = _read(path, offset + done, shape, np.dtype(np.uint8))
        other = _read(other_path, other_offset + done, shape, np.dtype(np.uint8))
        if not np.array_equal(block, other):
            return False
    return True


def write_safetensors(path: epath.PathLike, tensors: Mapping[str, Tensor]) -> None:
    """Writes one file, holding one tensor in memory at a time.

    Args:
      path: path of the file; its folder exists.
      tensors: tensors by name; each is read once, in this order (wide types first).

    Raises:
      OSError: the file cannot be written, e.g. because the disk is full.
    """
    # Wide types first keep every tensor aligned; the sort keeps the caller's order otherwise.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + byte_size(tensor)
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with epath.Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write(file, np.atleast_1d(tensors[name].read()))


def _write(file: Any, array: np.ndarray) -> None:
    """Writes an array row-major in blocks of rows, so that transposed views are never copied."""
    rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for first in range(0, len(array), rows):
        block = np.ascontiguousarray(array[first : first + rows])
        file.write(memoryview(block.reshape(-1).view(np.uint8)))


def byte_size(tensor: Tensor) -> int:
    """Computes the size of a tensor's values in bytes."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def split_by_size(tensors: Mapping[str, Tensor], most: float | int) -> list[dict[str, Tensor]]:
    """Distributes tensors over files of limited size; a larger tensor gets a file of its own.

    Args:
      tensors: tensors by name, in order.
      most: greatest number of bytes per file.

    Returns:
      The tensors of each file, by name.
    """
    files: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if files[-1] and filled + byte_size(tensor) > most:
            files.append({})
            filled = 0
        files[-1][name] = tensor
        filled += byte_size(tensor)
    return files


def converted(tensor: Tensor, shape: tuple[int, ...], change: Callable) -> Tensor:
    """Returns a tensor whose values pass through `change` whenever they are read.

    Args:
      tensor: tensor in a file.
      shape: shape after the change.
      change: function of the array to the changed array, of the same dtype.
    """
    return Tensor(shape, tensor.dtype, tensor.where, lambda: change(tensor.read()))
