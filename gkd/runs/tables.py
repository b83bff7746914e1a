"""Tables of text cells: Markdown for files and logs, rich's for terminals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import rich.box
import rich.table


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats cells as a Markdown table.

    Args:
      columns: the names in the first line.
      rows: the cells of each further line, one per column; a line break becomes a space.

    Returns:
      The lines, without a newline after the last.

    >>> print(markdown(["model", "gain"], [["student", "a|b"]]))
    | model | gain |
    | --- | --- |
    | student | a\\|b |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |"
        for line in lines
    )


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Formats rows as a Markdown table with the columns of the first row.

    Args:
      rows: cells by column; a column that a row lacks is empty.
    """
    if not rows:
        return "(no rows)"
    columns = list(rows[0])
    return markdown(columns, [[row.get(column, "") for column in columns] for row in rows])


def terminal(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    left: Collection[str],
    foldable: Collection[str] | None = None,
    **options: Any,
) -> rich.table.Table:
    """Makes a table that a `rich.console.Console` prints.

    Args:
      columns: the names in the heading.
      rows: one cell (text, or a `rich.text.Text`) per column.
      left: the columns that begin at the left; numbers end at the right.
      foldable: the columns whose cells may take several lines; None is all of them.
      **options: of `rich.table.Table`, e.g. its title.
    """
    table = rich.table.Table(**options)
    for name in columns:
        side = "left" if name in left else "right"
        whole = foldable is not None and name not in foldable
        table.add_column(name, justify=side, no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
