"""Parses tab-separated lines into rows, whose cells may be quoted as in CSV, or be plain text.

A cell is quoted if it begins and ends with a double quote and every quote inside is doubled; it may
then hold tabs and line breaks. Other cells are plain text, including quotes and backslashes:
`5" pipe`, `"So," he said`, `$\\theta$`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from gkd.errors import InvalidFile
from gkd.tables.columns import check_columns, row_of

_INSIDE = r'[^"]*(?:""[^"]*)*'
_OPEN = re.compile(f'"{_INSIDE}\\Z')  # a quoted cell without its end
_SINGLE_QUOTE = re.compile(r'(?<!")(?:"")*"(?!")')


def tsv_rows(
    lines: Iterable[tuple[int, str]],
    path: str,
    columns: Sequence[str] | None = None,
    delimiter: str = "\t",
    raw: bool = False,
) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Parses the numbered lines of a file into rows.

    Args:
      lines: (number, text without its line end), including blank lines.
      path: path of the file, for messages.
      columns: names of the columns; by default the first line holds them.
      delimiter: the character between two cells.
      raw: quotes are plain text in every cell.

    Yields:
      (number of the row's first line, its cells by column). Blank lines are no rows; in a file of
      one column they are empty cells, except at its end.

    Raises:
      ValueError: two columns have one name, a row has a wrong number of cells, or the end of a
        quote is ambiguous.

    >>> list(tsv_rows([(1, "en\\tde"), (2, '"a, b"\\t5" c')], "pairs.tsv"))
    [(2, {'en': 'a, b', 'de': '5" c'})]
    """
    check_columns(columns or (), path)
    parser, reader = _Parser(delimiter, raw), _Lines(lines)
    blank: list[tuple[int, str]] = []
    for number, text in reader:
        if columns is None:
            if text.strip():
                columns = [cell for cell, _ in parser.cells(text)[0]]
                check_columns(columns, f"{path}:{number}")
        elif not text.strip(" "):
            blank += [(number, text)] if len(columns) == 1 else []
        else:
            yield from ((line, {columns[0]: cell}) for line, cell in blank)
            blank = []
            cells = parser.row(reader, number, text, len(columns), path)
            yield number, row_of(columns, cells, f"{path}:{number}")


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


@dataclasses.dataclass(frozen=True)
class _Parser:
    """Splits lines into cells."""

    delimiter: str
    raw: bool

    @functools.cached_property
    def _quoted(self) -> re.Pattern[str]:
        return re.compile(f'"({_INSIDE})"(?={re.escape(self.delimiter)}|\\Z)')

    def cells(self, text: str) -> tuple[list[tuple[str, bool]], bool]:
        """Splits a text into (cell, was quoted); also True if a quoted cell is not closed."""
        if self.raw:
            return [(cell, False) for cell in text.split(self.delimiter)], False
        cells, start, is_open = [], 0, False
        while True:
            match = self._quoted.match(text, start)
            if match:
                cells.append((match.group(1).replace('""', '"'), True))
                end = match.end()
            else:
                is_open = is_open or _OPEN.match(text, start) is not None
                end = text.find(self.delimiter, start)
                end = len(text) if end < 0 else end
                cells.append((text[start:end], False))
            if end >= len(text):
                return cells, is_open
            start = end + 1

    def line_cells(self, text: str, count: int) -> tuple[list[str], bool]:
        """Splits a single line into cells; also returns True if a quoted cell is not closed.

        If quotes and tabs together do not give `count` cells but tabs alone do, quotes are plain
        text.
        """
        cells, is_open = self.cells(text)
        plain = text.split(self.delimiter)
        if len(cells) != count and len(plain) == count:
            return plain, is_open
        return [cell for cell, _ in cells], is_open

    def row(self, reader: _Lines, number: int, text: str, count: int, path: str) -> list[str]:
        """Returns the cells of the row that begins with this line."""
        cells, is_open = self.line_cells(text, count)
        if not is_open:
            return cells
        return self._row_over_lines(reader, number, text, count, path) or cells

    def _row_over_lines(
        self, reader: _Lines, number: int, text: str, count: int, path: str
    ) -> list[str] | None:
        """The cells of a row that continues in the next lines; None, with these put back, if none.

        Raises:
          ValueError: the lines are one row together, but also one row each.
        """
        taken, are_rows = [], [len(self.line_cells(text, count)[0]) == count]
        for line in reader:
            taken.append(line)
            are_rows.append(len(self.line_cells(line[1], count)[0]) == count)
            if not _SINGLE_QUOTE.search(line[1]):
                continue
            cells, is_open = self.cells("\n".join([text, *(following for _, following in taken)]))
            if is_open:
                continue
            if len(cells) != count or any("\n" in cell and not quoted for cell, quoted in cells):
                break
            if all(are_rows):
                raise InvalidFile(
                    f"{path}:{number}: a cell opens a quote that line {line[0]} closes, but every "
                    "line of them is a row by itself: set QUOTING=True if it is a quoted cell, "
                    "QUOTING=False if quotes are text"
                )
            return [cell for cell, _ in cells]
        reader.put_back(taken)
        return None
