"""Checks the files of a zarr array: the bounds of its description, the checksums of its chunks.

TensorStore stops reading a gzip, zlib or bz2 stream once it has the bytes that it needs, so that a
damaged or missing end goes unnoticed. T5X writes gzip. Chunks in blosc or zstd and uncompressed
chunks carry no checksum: their lengths are checked by TensorStore.
"""

from __future__ import annotations

import bz2
import concurrent.futures
import math
import zlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from gkd.errors import InvalidFile
from gkd.files.json_files import Field, check_fields, read_json

DESCRIPTION_FILE = ".zarray"
_THREADS = 8
_SIZES = Field(kinds=(list,), most=16, required=True)
_FIELDS = {
    "zarr_format": Field(kinds=(int,), choices=(2,), required=True),
    "shape": _SIZES,
    "chunks": _SIZES,
    "dtype": Field(kinds=(str,), most=20, required=True),
    "compressor": Field(kinds=(dict,), none=True),
    "order": Field(kinds=(str,), choices=("C", "F")),
    "dimension_separator": Field(kinds=(str,), choices=(".", "/")),
}
_DECODERS = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zlib": lambda: zlib.decompressobj(wbits=15),
    "bz2": bz2.BZ2Decompressor,
}


def read_zarr_description(folder: epath.Path) -> dict[str, Any]:
    """Reads the `.zarray` of an array within bounds, unlike TensorStore itself.

    Args:
      folder: folder of the array.

    Returns:
      The fields of the description; shape, chunks, type and compressor are checked.

    Raises:
      ValueError: the file is damaged, nested too deeply, or describes no zarr array.
    """
    path = folder / DESCRIPTION_FILE
    description = read_json(path, dict)
    check_fields(description, _FIELDS, path)
    compressor = description.get("compressor") or {}
    check_fields(compressor, {"id": Field(kinds=(str,), most=20)}, f"{path}: compressor")
    return description


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """Yields every file of an array's folder, including nested ones."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_below(path)
        else:
            yield path


def check_chunks(folder: epath.Path, compressor: str | None, chunk: list[int], width: int) -> None:
    """Decompresses every chunk, and checks its length and checksum.

    Args:
      folder: folder of the array.
      compressor: name of the compressor; None for none.
      chunk: shape of a chunk, also at the edge of the array.
      width: size of a value in bytes.

    Raises:
      ValueError: a chunk is truncated, damaged, or too long.
    """
    if compressor not in _DECODERS:
        return
    size = math.prod(chunk) * width
    files = [path for path in files_below(folder) if not path.name.startswith(".")]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        damages = pool.map(lambda path: _damage(path, _DECODERS[compressor](), size), files)
        for path, damage in zip(files, damages, strict=True):
            if damage is not None:
                raise InvalidFile(f"{path} is damaged or not complete: {damage}")


def _damage(path: epath.Path, decoder: Any, size: int) -> str | None:
    try:
        length = len(decoder.decompress(path.read_bytes(), size + 1))
    except (zlib.error, OSError, EOFError) as error:  # bz2 has OSError for damage
        return str(error)
    if length != size:
        return (
            f"it holds {'more than ' if length > size else ''}{min(length, size)} of {size} bytes"
        )
    if not decoder.eof:
        return "it is truncated before its checksum"
    return "bytes follow its end" if decoder.unused_data else None
