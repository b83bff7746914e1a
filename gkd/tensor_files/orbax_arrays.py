"""Reads arrays that Orbax wrote: zarr 2 or 3, in folders of their own or in an OCDBT database.

TensorStore reads all of them. OCDBT's index has checksums, the compressed values have none.
Source: https://google.github.io/tensorstore/kvstore/ocdbt/index.html.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from gkd.errors import InvalidFile
from gkd.files.json_files import shown
from gkd.tensor_files.msgpack_file import FLOAT_TYPES
from gkd.tensor_files.zarr_arrays import (
    check_inside,
    first_line,
    is_remote,
    locate_zarr,
    read_zarr,
)
from gkd.tensor_files.zarr_chunks import DESCRIPTION_FILE, files_below, read_zarr_description

MANIFEST_FILE = "manifest.ocdbt"
_BEST_COMPRESSION = 40_000  # greatest ratio of zstd: a higher one is a false size or a bomb
_CACHE_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An unread array of a checkpoint, in the layout of its file.

    Attributes:
      shape: shape of the array.
      dtype: dtype of the array.
      read: function that reads the array; `read(None)` the whole, `read(i)` the slice [:, i].
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ArrayFolder:
    """The folder of one Orbax item, whose arrays are opened by name.

    Attributes:
      root: path of the folder.
      is_zarr3: true if the arrays are zarr 3, else zarr 2.
      context: TensorStore context, whose cache serves other slices of the same chunks.
      verified: paths of arrays whose chunks have been compared with their checksums.
      stored: size of all files of the folder in bytes.
    """

    root: epath.Path
    is_zarr3: bool
    context: tensorstore.Context
    verified: set[str]
    stored: int

    def open(self, name: str) -> StoredArray:
        """Opens an array without reading its values.

        Args:
          name: name of the array as Orbax wrote it: keys joined by '.'.

        Raises:
          ValueError: the array is missing or damaged, is not of a floating-point type, or leaves
            the folder.
        """
        if not self.is_zarr3 and not (self.root / MANIFEST_FILE).exists():
            return self._open_folder(name)
        where = f"{self.root}: {name}"
        store = self._open_store(name, where)
        shape, dtype = tuple(store.shape), store.dtype.numpy_dtype
        if dtype not in FLOAT_TYPES.values():
            raise InvalidFile(f"{where} is of type {store.dtype.name}: weights are floating-point")
        wanted = math.prod(shape) * dtype.itemsize
        if wanted > _BEST_COMPRESSION * self.stored:
            raise InvalidFile(
                f"{where} claims {wanted} bytes, but {self.stored} bytes are in the folder: "
                "truncated or damaged"
            )
        chunk = store.chunk_layout.read_chunk.shape or shape
        if any(size > max(1, whole) for size, whole in zip(chunk, shape, strict=True)):
            raise InvalidFile(f"{where} has chunks of {list(chunk)}, larger than {list(shape)}")
        return StoredArray(shape, dtype, functools.partial(_read, store, where))

    def _open_folder(self, name: str) -> StoredArray:
        """Opens an array in a folder of its own, as T5X's older checkpoints have it."""
        store = {"driver": "file", "path": name}
        specification = {"driver": "zarr", "kvstore": store, "metadata": {"shape": []}}
        locate_zarr({**specification, "dtype": "float32"}, self.root, name)  # checks the path
        if not (self.root / name / DESCRIPTION_FILE).exists():
            raise InvalidFile(f"{self.root}: {name} is missing: the checkpoint is not complete")
        description = read_zarr_description(self.root / name)
        array = locate_zarr({**specification, "metadata": description}, self.root, name)
        read = functools.partial(read_zarr, array, context=self.context, verified=self.verified)
        return StoredArray(array.shape, array.dtype, read)

    def _open_store(self, name: str, where: str) -> Any:
        if not re.fullmatch(r"[\w. -]+", name) or ".." in name:
            raise InvalidFile(f"{self.root}: an array has the name {shown(name)}: refused")
        root = f"{self.root}/" if is_remote(self.root) else f"file://{os.path.abspath(self.root)}/"
        if (self.root / MANIFEST_FILE).exists():
            place = {"driver": "ocdbt", "base": root, "path": f"{name}/"}
        else:
            place = f"{root}{name}/"
        specification = {
            "driver": "zarr3" if self.is_zarr3 else "zarr",
            "kvstore": place,
            "fill_missing_data_reads": False,
        }
        try:
            return tensorstore.open(specification, context=self.context, open=True).result()
        except Exception as error:  # TensorStore raises many types for damaged files
            raise InvalidFile(f"{where} is missing or damaged: {first_line(error)}") from error


def open_folder(root: epath.Path, is_zarr3: bool) -> ArrayFolder:
    """Opens the folder of one Orbax item.

    Args:
      root: path of the folder that holds the arrays.
      is_zarr3: true if they are zarr 3, else zarr 2.

    Returns:
      The folder.

    Raises:
      ValueError: a symbolic link leads out of it.
    """
    stored = 0
    for path in files_below(root):
        check_inside(root, path, path.name)
        stored += path.stat().length
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    return ArrayFolder(root, is_zarr3, context, set(), stored)


def _read(store: Any, where: str, layer: int | None) -> np.ndarray:
    try:
        return (store if layer is None else store[:, layer]).read(order="C").result()
    except Exception as error:  # TensorStore raises many types for damaged files
        raise InvalidFile(f"{where} is damaged or not complete: {first_line(error)}") from error
