"""Reads Flax's msgpack files array by array, after indexing their headers.

The format is https://github.com/msgpack/msgpack/blob/master/spec.md; Flax stores an array as
extension 1 (a scalar: 3) with the content (shape, name of the dtype, bytes), and arrays above 1 GB
as maps of such pieces. Indexing reads headers only and skips values, so that its cost does not
depend on the file's size; lengths beyond the end of the file are refused before any allocation.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from gkd.errors import InvalidFile

FLOAT_TYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_ARRAY_EXTENSIONS = (1, 3)
_CHUNKED = "__msgpack_chunked_array__"
_LONGEST_TEXT = 1 << 16
_DEEPEST = 32
_LARGEST_RANK = 16
_LARGEST_READ = 1 << 26

# First byte -> (kind, bytes of the length that follows).
_LENGTHS = {
    0xC4: ("bin", 1), 0xC5: ("bin", 2), 0xC6: ("bin", 4),
    0xC7: ("ext", 1), 0xC8: ("ext", 2), 0xC9: ("ext", 4),
    0xD9: ("str", 1), 0xDA: ("str", 2), 0xDB: ("str", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An unread array inside a msgpack file.

    Attributes:
      shape: shape of the array.
      type_name: name of its dtype.
      pieces: (offset, length) of its bytes in the file, in order; row-major when joined.
    """

    shape: tuple[int, ...]
    type_name: str
    pieces: tuple[tuple[int, int], ...]


def index_msgpack(path: epath.PathLike, keep: Callable[[tuple[str, ...]], bool]) -> dict[str, Any]:
    """Indexes a msgpack file whose outermost value is a map, without the values of its arrays.

    Args:
      path: path of the file.
      keep: predicate on the keys from the outermost map inwards; other values are skipped.

    Returns:
      A nested dictionary; arrays are `StoredArray`s.

    Raises:
      ValueError: the file is no msgpack map, or is truncated or damaged.
    """
    path = epath.Path(path)
    size = path.stat().length
    with path.open("rb") as file:
        reader = _Reader(file, path, size, keep)
        if size == 0:
            raise InvalidFile(f"{path} is empty: it is no checkpoint, or was truncated")
        if file.read(1) == b"\x80" and size > 1:  # first byte of a pickle; in msgpack an empty map
            raise InvalidFile(
                f"{path} looks like a pickle file, which can run any code when it is read: it is "
                "not opened"
            )
        reader.go_to(0)
        kind, length = reader.header()
        if kind != "map":
            raise InvalidFile(f"{path} is no msgpack checkpoint: it begins with a {kind}")
        tree = reader.read_map(length, ())
        if reader.position != size:
            raise InvalidFile(f"{path} is damaged: {size - reader.position} bytes follow its end")
    return tree


def read_array(path: epath.PathLike, array: StoredArray) -> np.ndarray:
    """Reads one array of an indexed file.

    Args:
      path: path of the file.
      array: an array of `index_msgpack`, whose type is one of `FLOAT_TYPES`.

    Returns:
      The array.

    Raises:
      ValueError: the file has become shorter.
    """
    result = np.empty(array.shape, FLOAT_TYPES[array.type_name])
    target = result.reshape(-1).view(np.uint8)
    filled = 0
    with epath.Path(path).open("rb") as file:
        for offset, length in array.pieces:
            file.seek(offset)
            end = filled + length
            while filled < end:
                block = file.read(min(_LARGEST_READ, end - filled))
                if not block:
                    raise InvalidFile(
                        f"{path} ended while it was read: was it truncated in the meantime?"
                    )
                target[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
                filled += len(block)
    return result


class _Reader:
    """Reads a msgpack file header by header, tracking the position."""

    def __init__(self, file: BinaryIO, path: epath.Path, size: int, keep: Callable):
        self.file, self.path, self.size, self.keep = file, path, size, keep
        self.position = 0

    def go_to(self, position: int) -> None:
        self.file.seek(position)
        self.position = position

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise InvalidFile(
                f"{self.path} is truncated or damaged: at byte {self.position} it claims {count} "
                f"more bytes and has {self.size - self.position}"
            )
        data = self.file.read(count)
        if len(data) != count:
            raise InvalidFile(
                f"{self.path} ended while it was read: was it truncated in the meantime?"
            )
        self.position += count
        return data

    def header(self) -> tuple[str, Any]:
        """Reads the kind of the next value, and its length or, for numbers, the value itself."""
        first = self.take(1)[0]
        if first <= 0x7F or first >= 0xE0:
            return "number", first if first <= 0x7F else first - 256
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "list", first & 0x0F
        if first <= 0xBF:
            return "str", first & 0x1F
        if 0xD4 <= first <= 0xD8:
            return "ext", 1 << (first - 0xD4)
        if first in _CONSTANTS:
            return "number", _CONSTANTS[first]
        if first in _NUMBERS:
            form = _NUMBERS[first]
            return "number", struct.unpack(form, self.take(struct.calcsize(form)))[0]
        if first not in _LENGTHS:
            raise InvalidFile(f"{self.path} is damaged: no msgpack at byte {self.position - 1}")
        kind, width = _LENGTHS[first]
        length = int.from_bytes(self.take(width), "big")
        self.check(kind, length)
        return kind, length

    def check(self, kind: str, length: int) -> None:
        """Refuses a length beyond the rest of the file; every entry needs at least one byte."""
        needed = {"map": 2 * length, "list": length, "ext": length + 1}.get(kind, length)
        if needed > self.size - self.position:
            raise InvalidFile(
                f"{self.path} is truncated or damaged: a {kind} at byte {self.position} claims "
                f"{length} {'entries' if kind in ('map', 'list') else 'bytes'} and "
                f"{self.size - self.position} bytes follow"
            )

    def jump_over(self) -> None:
        """Skips one value, of any depth."""
        pending = 1
        while pending:
            pending -= 1
            kind, length = self.header()
            if kind == "map":
                pending += 2 * length
            elif kind == "list":
                pending += length
            elif kind in ("bin", "str", "ext"):
                self.check(kind, length)
                self.go_to(self.position + length + (kind == "ext"))

    def text(self, kind: str, length: Any) -> str:
        if kind not in ("str", "bin") or length > _LONGEST_TEXT:
            raise InvalidFile(f"{self.path} is damaged: no name at byte {self.position}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{self.path} is damaged: no name at byte {self.position}") from error

    def read_map(self, length: int, keys: tuple[str, ...]) -> Any:
        if len(keys) > _DEEPEST:
            raise InvalidFile(f"{self.path} is damaged: maps nested more than {_DEEPEST} deep")
        tree: dict[str, Any] = {}
        for _ in range(length):
            key = self.text(*self.header())
            if key in tree:
                raise InvalidFile(
                    f"{self.path} is damaged: {'/'.join((*keys, key))} is there twice"
                )
            if self.keep((*keys, key)):
                tree[key] = self.read((*keys, key))
            else:
                self.jump_over()
        return self.joined(tree, keys) if _CHUNKED in tree else tree

    def read(self, keys: tuple[str, ...]) -> Any:
        kind, length = self.header()
        if kind == "map":
            return self.read_map(length, keys)
        if kind == "list":
            if len(keys) > _DEEPEST:
                raise InvalidFile(f"{self.path} is damaged: lists nested more than {_DEEPEST} deep")
            return [self.read((*keys, str(i))) for i in range(length)]
        if kind == "str":
            return self.text(kind, length)
        if kind == "ext":
            return self.read_extension(length, keys)
        if kind == "bin":
            raise InvalidFile(f"{self.path}: {'/'.join(keys)} is bytes, not an array")
        return length

    def read_extension(self, length: int, keys: tuple[str, ...]) -> StoredArray:
        code = int.from_bytes(self.take(1), "big", signed=True)
        end = self.position + length
        name = "/".join(keys)
        if code not in _ARRAY_EXTENSIONS:
            raise InvalidFile(f"{self.path}: {name} is of msgpack extension {code}, not an array")
        self.check("value", length)
        if self.header() != ("list", 3):
            raise InvalidFile(f"{self.path} is damaged: {name} is no array")
        kind, rank = self.header()
        if kind != "list" or rank > _LARGEST_RANK:
            raise InvalidFile(f"{self.path} is damaged: {name} is no array")
        shape = tuple(self.header()[1] for _ in range(rank))
        type_name = self.text(*self.header())
        kind, count = self.header()
        if kind not in ("bin", "str") or self.position + count != end or not _are_sizes(shape):
            raise InvalidFile(f"{self.path} is damaged: {name} is no array")
        array = StoredArray(shape, type_name, ((self.position, count),))
        self.check_size(array, name)
        self.go_to(end)
        return array

    def check_size(self, array: StoredArray, name: str) -> None:
        stored = sum(length for _, length in array.pieces)
        wanted = FLOAT_TYPES.get(array.type_name)
        if wanted is not None and math.prod(array.shape) * wanted.itemsize != stored:
            raise InvalidFile(
                f"{self.path} is damaged: {name} of shape {list(array.shape)} and type "
                f"{array.type_name} cannot be {stored} bytes"
            )

    def joined(self, tree: dict[str, Any], keys: tuple[str, ...]) -> StoredArray:
        """Joins the pieces of an array that Flax split, as msgpack limits values to 2 GB."""
        name = "/".join(keys)
        shape, pieces = _in_order(tree.get("shape")), _in_order(tree.get("chunks"))
        types = {piece.type_name for piece in pieces if isinstance(piece, StoredArray)}
        if len(types) != 1 or not _are_sizes(shape):
            raise InvalidFile(f"{self.path} is damaged: {name} is no array in pieces")
        if not all(isinstance(piece, StoredArray) for piece in pieces):
            raise InvalidFile(f"{self.path} is damaged: {name} is no array in pieces")
        spans = tuple(span for piece in pieces for span in piece.pieces)
        array = StoredArray(tuple(shape), types.pop(), spans)
        self.check_size(array, name)
        return array


def _in_order(tree: Any) -> list[Any]:
    """Lists the values of {'0': a, '1': b} in order: [a, b]; [] for other trees."""
    if not isinstance(tree, dict) or set(tree) != {str(i) for i in range(len(tree))}:
        return []
    return [tree[str(i)] for i in range(len(tree))]


def _are_sizes(shape: Any) -> bool:
    return all(type(size) is int and size >= 0 for size in shape)
