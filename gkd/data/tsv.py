"""Parses tab-separated lines into rows, with quoted cells as in CSV (RFC 4180).

A cell is quoted if it begins and ends with a double quote and every quote inside is doubled; it may
then hold tabs and line breaks. Other cells are plain text, including quotes and backslashes:
`5" pipe`, `"So," he said`, `$\\theta$`.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gkd.errors import InvalidFile

_INSIDE = r'[^"]*(?:""[^"]*)*'
_QUOTED = re.compile(f'"({_INSIDE})"(?=\\t|\\Z)')
_OPEN = re.compile(f'"{_INSIDE}\\Z')  # a quoted cell without its end
_SINGLE_QUOTE = re.compile(r'(?<!")(?:"")*"(?!")')


def tsv_rows(
    lines: Iterable[tuple[int, str]], path: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Parses the numbered lines of a file into rows.

    Args:
      lines: (number, text without its line end), including blank lines.
      path: path of the file, for messages.
      columns: names of the columns; by default the first line holds them.

    Yields:
      (number of the row's first line, its cells by column). Blank lines are no rows; in a file of
      one column they are empty cells, except at its end.

    Raises:
      ValueError: two columns have one name, a row has a wrong number of cells, or the end of a
        quote is ambiguous.

    >>> list(tsv_rows([(1, "en\\tde"), (2, '"a, b"\\t5" c')], "pairs.tsv"))
    [(2, {'en': 'a, b', 'de': '5" c'})]
    """
    _check_columns(columns or (), path)
    reader = _Lines(lines)
    blank: list[tuple[int, str]] = []
    for number, text in reader:
        if columns is None:
            if text.strip():
                columns = [cell for cell, _ in _cells(text)[0]]
                _check_columns(columns, f"{path}:{number}")
        elif not text.strip(" "):
            blank += [(number, text)] if len(columns) == 1 else []
        else:
            yield from ((line, {columns[0]: cell}) for line, cell in blank)
            blank = []
            cells = _row(reader, number, text, columns, path)
            yield number, dict(zip(columns, cells, strict=True))


def _check_columns(columns: Sequence[str], where: str) -> None:
    repeated = next((name for name in columns if list(columns).count(name) > 1), None)
    if repeated is not None:
        raise InvalidFile(f"{where}: two columns are named {repeated!r}: give each its own name")


class _Lines:
    """An iterator over lines that can be put back."""

    def __init__(self, lines: Iterable[tuple[int, str]]):
        self._lines, self._back = iter(lines), collections.deque()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> tuple[int, str]:
        return self._back.popleft() if self._back else next(self._lines)

    def put_back(self, lines: Sequence[tuple[int, str]]) -> None:
        """Puts lines back, so that they come next again."""
        self._back.extendleft(reversed(lines))


def _cells(text: str) -> tuple[list[tuple[str, bool]], bool]:
    """Splits a text into (cell, was quoted); also returns True if a quoted cell is not closed."""
    cells, start, is_open = [], 0, False
    while True:
        match = _QUOTED.match(text, start)
        if match:
            cells.append((match.group(1).replace('""', '"'), True))
            end = match.end()
        else:
            is_open = is_open or _OPEN.match(text, start) is not None
            end = text.find("\t", start)
            end = len(text) if end < 0 else end
            cells.append((text[start:end], False))
        if end >= len(text):
            return cells, is_open
        start = end + 1


def _line_cells(text: str, count: int) -> tuple[list[str], bool]:
    """Splits a single line into cells; also returns True if a quoted cell is not closed.

    If quotes and tabs together do not give `count` cells but tabs alone do, quotes are plain text.
    """
    cells, is_open = _cells(text)
    raw = text.split("\t")
    if len(cells) != count and len(raw) == count:
        return raw, is_open
    return [cell for cell, _ in cells], is_open


def _row(reader: _Lines, number: int, text: str, columns: Sequence[str], path: str) -> list[str]:
    cells, is_open = _line_cells(text, len(columns))
    if is_open:
        cells = _row_over_lines(reader, number, text, len(columns), path) or cells
    if len(cells) != len(columns):
        raise InvalidFile(
            f"{path}:{number}: {len(cells)} columns, needs {len(columns)} ({', '.join(columns)})"
        )
    return cells


def _row_over_lines(
    reader: _Lines, number: int, text: str, count: int, path: str
) -> list[str] | None:
    """The cells of a row that continues in the next lines; None, with these put back, if none does.

    Raises:
      ValueError: the lines are one row together, but also one row each.
    """
    taken, are_rows = [], [len(_line_cells(text, count)[0]) == count]
    for line in reader:
        taken.append(line)
        are_rows.append(len(_line_cells(line[1], count)[0]) == count)
        if not _SINGLE_QUOTE.search(line[1]):
            continue
        cells, is_open = _cells("\n".join([text, *(following for _, following in taken)]))
        if is_open:
            continue
        if len(cells) != count or any("\n" in cell and not quoted for cell, quoted in cells):
            break
        if all(are_rows):
            raise InvalidFile(
                f"{path}:{number}: a cell opens a quote that line {line[0]} closes, but every line "
                'of them is a row by itself: double the quote ("") if it is text, or give JSONL'
            )
        return [cell for cell, _ in cells]
    reader.put_back(taken)
    return None
