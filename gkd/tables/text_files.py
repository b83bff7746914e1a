"""Reads the lines of text files: compressions, byte-order marks, encodings, damage."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow

from gkd.errors import InvalidFile, MissingFile

ENVIRONMENT = "GKD_DATA"
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstandard"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, pyarrow.ArrowInvalid)
# First bytes of files that are often found under another name.
_KINDS = {
    b"\x1f\x8b": "compressed by gzip: name it .gz",
    b"BZh91AY&SY": "compressed by bzip2: name it .bz2",
    b"\xfd7zXZ": "compressed by xz: name it .xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstandard: name it .zst",
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save the sheet as CSV",
    b"PAR1": "a Parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: name it .arrow",
}


def resolved(path: str, directory: str | None = None) -> str:
    """Resolves a configured path.

    Args:
      path: absolute path, or path relative to a data directory.
      directory: the data directory; by default the environment variable GKD_DATA, else the current
        directory.

    >>> resolved("train.jsonl", "/data"), resolved("/elsewhere/train.jsonl", "/data")
    ('/data/train.jsonl', '/elsewhere/train.jsonl')
    """
    return os.path.join(directory or os.environ.get(ENVIRONMENT) or "", path)


def suffixes(path: str) -> tuple[str, str]:
    """Splits the suffixes off a file's name, in lower case.

    Args:
      path: path of the file.

    Returns:
      (suffix of the format, suffix of the compression or "").

    >>> suffixes("data/Train.JSONL.gz"), suffixes("pairs.tsv")
    (('.jsonl', '.gz'), ('.tsv', ''))
    """
    root, last = os.path.splitext(os.path.basename(path).lower())
    if last in COMPRESSIONS:
        return os.path.splitext(root)[1], last
    return last, ""


def check_kind(path: str, head: bytes) -> None:
    """Checks by its first bytes that a file is not of another kind than its name's.

    Args:
      path: path of the file.
      head: its first bytes, 32 or more unless it is shorter.

    Raises:
      ValueError: the bytes are those of another kind, which the text names with the remedy.
    """
    kind = next((kind for start, kind in _KINDS.items() if head.startswith(start)), None)
    if kind is not None:
        raise InvalidFile(f"data file {path} is {kind}")


def check_exists(path: str) -> None:
    """Checks that there is a file.

    Args:
      path: path of the file.

    Raises:
      FileNotFoundError: there is none.
    """
    if "://" in path:
        raise MissingFile(f"data file {path} is an address: download it, and name the local file")
    if not os.path.isfile(path):
        raise MissingFile(
            f"data file {path} does not exist: correct its path, or set {ENVIRONMENT} (or the gin "
            "macro DATA) to the directory that relative paths start from"
        )


def read_text(path: str) -> str:
    """Reads a whole text file, e.g. of exemplars.

    Args:
      path: path of the file, compressed if its name ends so.

    Returns:
      The text, without a byte-order mark.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not UTF-8, or is damaged.
    """
    check_exists(path)
    return "".join(text for _, text in lines(path)).replace("\r\n", "\n")


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Reads the numbered lines of a file, with their ends, without a byte-order mark.

    Args:
      path: path of the file, compressed if its name ends so; UTF-8, or UTF-16 with its mark.

    Yields:
      (line number from 1, line).

    Raises:
      ValueError: the file is not UTF-8, holds NUL, or its compression is damaged; the text names
        the line number.
    """
    number = 0
    try:
        with _opened(path) as file:
            head = file.peek(32)
            check_kind(path, head)
            decoded = head[:2] in _UTF16
            for number, line in enumerate(_utf16(file) if decoded else file, start=1):
                if not decoded:
                    line = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if "\0" in line:
                    raise InvalidFile(
                        f"{path}:{number}: a NUL character: the file is damaged, binary, or UTF-16 "
                        "without its mark: save it as UTF-8"
                    )
                yield number, line
    except UnicodeDecodeError as error:
        number += "utf-16" in error.encoding  # decoded ahead of the line
        raise InvalidFile(
            f"{path}:{number}: not {error.encoding.upper()} ({error.reason}): save it as UTF-8"
        ) from error
    except _DAMAGE as error:
        compression = COMPRESSIONS.get(suffixes(path)[1])
        if compression is None or getattr(error, "errno", None) is not None:
            raise
        raise InvalidFile(
            f"{path}: damaged {compression} after line {number} ({' '.join(str(error).split())})"
        ) from error


def _utf16(file: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, "utf-16", newline="\n")


def _opened(path: str) -> io.BufferedReader:
    """Opens a file's decompressed bytes."""
    compression = suffixes(path)[1]
    if compression == ".zst":
        return io.BufferedReader(pyarrow.CompressedInputStream(path, "zstd"))
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(compression, open)
    return io.BufferedReader(opener(path, "rb"))
