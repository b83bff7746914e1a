"""Checks the columns of tables of text: their names, and the number of cells of every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gkd.errors import InvalidFile

_DELIMITERS = (";", "\t", ",", "|")


def check_columns(columns: Sequence[str], where: str) -> None:
    """Checks the names of a file's columns.

    Args:
      columns: the names; a column without a name is left out of the rows.
      where: place of the names in messages.

    Raises:
      ValueError: two columns have one name, none has a name, or lines end with carriage returns.
    """
    names = [name for name in columns if name]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InvalidFile(f"{where}: two columns are named {repeated!r}: give each its own name")
    if any("\r" in name.strip("\r") for name in names):
        raise InvalidFile(
            f"{where}: the line with the columns' names holds carriage returns: save the file with "
            "line feeds as line ends"
        )
    if columns and not names:
        raise InvalidFile(f"{where}: no column has a name: write their names, or set COLUMNS")


def row_of(columns: Sequence[str], cells: Sequence[str], where: str) -> Mapping[str, str]:
    """Joins the cells of a row with the names of their columns.

    Args:
      columns: names of the columns.
      cells: cells of the row.
      where: place of the row in messages.

    Returns:
      The cells by name, without those of columns that have none.

    Raises:
      ValueError: the numbers differ.
    """
    if len(cells) != len(columns):
        raise InvalidFile(
            f"{where}: {len(cells)} columns, needs {len(columns)} ({', '.join(columns)})"
            f"{delimiter_hint(columns)}"
        )
    return {name: cell for name, cell in zip(columns, cells, strict=True) if name}


def delimiter_hint(columns: Sequence[str]) -> str:
    """Names the delimiter that an only column's name seems to hold: `: set DELIMITER=';'`.

    Args:
      columns: names of the columns.

    Returns:
      The end of a message; empty if there are several columns, or no such character.

    >>> delimiter_hint(["input;target"])
    ": set DELIMITER=';'"
    """
    found = held_delimiters(columns)
    return f": set DELIMITER={found[0]!r}" if found else ""


def held_delimiters(columns: Sequence[str]) -> list[str]:
    """Lists the delimiters that an only column's name holds; none if there are several columns.

    Args:
      columns: names of the columns.

    >>> held_delimiters(["input;target"])
    [';']
    """
    return [mark for mark in _DELIMITERS if mark in columns[0]] if len(columns) == 1 else []
