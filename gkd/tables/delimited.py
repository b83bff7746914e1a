"""Reads CSV and TSV files, quoted by the rules of CSV (RFC 4180) or not at all."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile, InvalidValue
from gkd.tables.columns import check_columns, delimiter_hint, row_of
from gkd.tables.text_files import lines, suffixes
from gkd.tables.tsv import tsv_rows

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_EXCEL = re.compile(r"sep=([^\r\n])[\r\n]*")  # a first line that names the delimiter to Excel
_LINE = re.compile(r"[^\r]*(?:\r(?!\n)|\r\n|\Z)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TsvFormat:
    """The format of CSV and TSV files.

    Attributes:
      columns: names of the columns, if the first line of the files does not hold them.
      delimiter: the character between two cells; None is the comma of .csv, the tab of .tsv.
      quoting: True for the rules of CSV, where quoted cells hold delimiters, line breaks and
        doubled quotes; False for plain text, where quotes are characters like any other. None is
        True for .csv; in .tsv cells that are quoted as in CSV are unquoted and all others are plain
        text, and what could be both is refused.
      escapes: replace \\n and \\t in cells by a newline and a tab; other backslashes are text.
    """

    columns: Sequence[str] | None = None
    delimiter: str | None = None
    quoting: bool | None = None
    escapes: bool = False

    def __post_init__(self) -> None:
        """Checks the delimiter, which a shell may pass as a backslash and a t for a tab."""
        if self.delimiter == "\\t":
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InvalidValue(
                f"DELIMITER={self.delimiter!r} is not one character, such as ',', ';' or '\\t'"
            )


def shows_format(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the fields of `TsvFormat` visible as parameters of a function that takes them as **tsv.

    Args:
      function: the function, whose signature is read where gin files are checked.

    Returns:
      The same function.

    >>> @shows_format
    ... def read(file, **tsv): ...
    >>> list(inspect.signature(read).parameters)
    ['file', 'columns', 'delimiter', 'quoting', 'escapes']
    """
    own = inspect.signature(function)
    shown = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    shown += inspect.signature(TsvFormat).parameters.values()
    function.__signature__ = own.replace(parameters=shown)
    return function


def delimited_rows(path: str, form: TsvFormat) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Reads the rows of a CSV or TSV file.

    Args:
      path: path of the file.
      form: its format.

    Yields:
      (number of the row's first line, its cells by column). Blank lines are no rows.

    Raises:
      ValueError: the file breaks the rules of its format; the text names file and line.
    """
    suffix = suffixes(path)[0]
    numbered = lines(path)
    head = list(itertools.islice(numbered, 1))
    named = _EXCEL.fullmatch(head[0][1]) if head else None
    delimiter = form.delimiter or (named[1] if named else DELIMITERS[suffix])
    numbered = numbered if named else itertools.chain(head, numbered)
    if form.quoting or (form.quoting is None and suffix == ".csv"):
        rows = _csv_rows(numbered, path, form.columns, delimiter, 2 if named else 1)
    else:
        ended = ((number, text.rstrip("\r\n")) for number, text in numbered)
        rows = tsv_rows(ended, path, form.columns, delimiter, form.quoting is False)
    return ((number, _unescaped(row)) for number, row in rows) if form.escapes else rows


def _unescaped(row: Mapping[str, str]) -> dict[str, str]:
    """Replaces the escapes \\n and \\t in all cells, which e.g. FLAN's files use."""
    return {name: cell.replace("\\n", "\n").replace("\\t", "\t") for name, cell in row.items()}


def _csv_rows(
    numbered: Iterable[tuple[int, str]],
    path: str,
    columns: Sequence[str] | None,
    delimiter: str,
    first: int,
) -> Iterator[tuple[int, Mapping[str, str]]]:
    csv.field_size_limit(sys.maxsize)  # texts of any length, as in the other formats
    check_columns(columns or (), path)
    # Python's reader ends rows at a carriage return too, but only at the end of a string.
    texts = (part for _, text in numbered for part in _LINE.findall(text) if part)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = delimiter_hint(columns or ()) or (
                ': write a quote inside a quoted cell twice (""), or set QUOTING=False if quotes '
                f"are text, or DELIMITER if {delimiter!r} does not separate the cells"
            )
            raise InvalidFile(
                f"{path}:{number}: not by the rules of CSV ({error}, read up to line "
                f"{reader.line_num + first - 1}){remedy}"
            ) from error
        if not cells or (len(cells) == 1 and not cells[0].strip() and columns and columns[1:]):
            continue  # a blank line
        if columns is None:
            columns = cells
            check_columns(columns, f"{path}:{number}")
        else:
            yield number, row_of(columns, cells, f"{path}:{number}")
