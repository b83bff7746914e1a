"""Reads rows of data files of every format, and finds the files that a path names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidValue, MissingFile
from gkd.files.lfs_pointers import refuse_lfs_pointer
from gkd.tables import arrow_files, fields, json_files, text_files
from gkd.tables.delimited import DELIMITERS, TsvFormat, delimited_rows

LINES = (".jsonl", ".ndjson", ".jsonlines")
DOCUMENTS = (".json",)
ARROW = (".parquet", ".arrow")
# For messages and --help.
FORMATS = (
    f"{', '.join((*LINES, *DOCUMENTS, *DELIMITERS))} (each also "
    f"{', '.join(text_files.COMPRESSIONS)}), {', '.join(ARROW)} or a folder of save_to_disk"
)


def data_files(path: str) -> list[str]:
    """Finds the files that a path names.

    Args:
      path: path of a file; a pattern with * or ?, whose files are taken in the order of their
        names; or the folder of a Hugging Face data set saved by `save_to_disk`.

    Returns:
      Paths of one file or more.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a folder is no saved data set, or holds several splits.

    Only the last part of a pattern is one in most data sets: `data/train-*.parquet`.
    """
    if os.path.isdir(path):
        return arrow_files.saved_files(path)
    if not os.path.exists(path) and any(sign in path for sign in "*?"):
        matches = sorted(glob.glob(path.replace("[", "[[]")))
        found = [match for match in matches if not os.path.isdir(match)]
        if not found:
            raise MissingFile(f"no data file matches {path}")
        for match in found:  # a link may lead nowhere
            text_files.check_exists(match)
        return found
    text_files.check_exists(path)
    return [path]


def placed_rows(
    path: str, form: TsvFormat | None = None, needed: Sequence[str] | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Reads the rows of data files one after the other, without checking their fields.

    Args:
      path: path of one file or more, see `data_files`.
      form: format of CSV and TSV files.
      needed: names of the fields that are read; others may be left out of the rows. None keeps all.

    Returns:
      An iterator over (file with line or row number, row).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a name has no known suffix; while iterating, a file is malformed.
    """
    files = data_files(path)
    for file in files:
        check_format(file)
        refuse_lfs_pointer(file)
    return (row for file in files for row in _rows(file, form or TsvFormat(), needed))


def check_format(path: str) -> None:
    """Checks that a file's name has the suffix of a format, in any case.

    Args:
      path: path of the file.

    Raises:
      ValueError: it has not.
    """
    suffix, compression = text_files.suffixes(path)
    if suffix not in (*LINES, *DOCUMENTS, *DELIMITERS, *(() if compression else ARROW)):
        raise InvalidValue(f"data file {path} is none of {FORMATS}")


def _rows(path: str, form: TsvFormat, needed: Sequence[str] | None) -> Any:
    suffix = text_files.suffixes(path)[0]
    if suffix in ARROW:
        return arrow_files.arrow_rows(path, needed)
    if suffix in DELIMITERS:
        return ((f"{path}:{number}", row) for number, row in delimited_rows(path, form))
    if suffix in DOCUMENTS:
        return json_files.document_rows(path)
    return json_files.json_rows(path, written=True)


def read_rows(
    path: str,
    texts: Sequence[str],
    lists: Sequence[str] = (),
    references: Sequence[str] = (),
    form: TsvFormat | None = None,
) -> list[dict[str, Any]]:
    """Reads the rows of data files, and checks every field.

    Args:
      path: path of one file or more, see `data_files`.
      texts: names of the fields to read; every row must have each of them, see `fields.text_of`.
      lists: names of further fields, which hold lists of texts.
      references: names of further fields, which hold a text or a list of texts.
      form: format of CSV and TSV files.

    Returns:
      One dictionary per row, with these fields only: texts, and lists of texts for `lists` and
      `references`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a row is malformed; the text names file, line or row, and field.
    """
    readers = {
        **dict.fromkeys(texts, fields.text_of),
        **dict.fromkeys(lists, fields.texts_of),
        **dict.fromkeys(references, fields.references_of),
    }
    return [
        {field: read(row, field, where) for field, read in readers.items()}
        for where, row in placed_rows(path, form, list(readers))
    ]
