"""The table of a sweep's progress: state, step, starts and best metric of every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.table
import rich.text

from gkd.runs import tables
from gkd.runs.lease import Watch
from gkd.sweep.cells import Cell

_STYLES = {"complete": "green", "runs": "cyan", "failed": "red", "another": "red"}
_WIDTH = 120  # columns where the output is no terminal: enough for long names


def console(stderr: bool) -> rich.console.Console:
    """Builds the console that prints the table.

    Args:
      stderr: print to standard error, not to standard output.
    """
    made = rich.console.Console(stderr=stderr)
    return made if made.is_terminal else rich.console.Console(stderr=stderr, width=_WIDTH)


def table(
    cells: Sequence[Cell], states: Mapping[int, str] | None = None, tries: Sequence[int] = ()
) -> rich.table.Table:
    """Builds a table with a row per cell: name, state, last step, starts, best metric so far.

    Args:
      cells: the cells from `sweep.plan`.
      states: states by the cell's index, as the running sweep tracks them; the states of the other
        cells are read from their files.
      tries: number of starts of each cell by this sweep, used if the files do not record it.
    """
    rows = []
    for number, cell in enumerate(cells):
        step, starts, best = cell.progress()
        state = (states or {}).get(number) or state_on_disk(cell, bool(step or starts))
        if state == "complete" and cell.train_steps and cell.run is None:
            step = cell.train_steps
        starts = starts or (tries[number] if tries else None)
        metric = "" if best is None else f"{cell.best_metric} {best:.4g}"
        of = f"{step or 0}/{cell.train_steps}" if cell.train_steps and cell.run is None else ""
        style = _STYLES.get(state.split()[0], "")
        rows.append((cell.name, rich.text.Text(state, style), of, str(starts or ""), metric))
    return tables.terminal(
        ("cell", "state", "step", "starts", "best so far"), rows,
        left=("cell", "state"), foldable=("state",), box=rich.box.SIMPLE,
    )  # fmt: skip


def state_on_disk(cell: Cell, begun: bool) -> str:
    """Reads the state of a cell from its files.

    Args:
      cell: a cell of the sweep.
      begun: true if the cell was started before.

    Returns:
      'complete', 'another configuration: …', 'runs: …', 'begun' or 'open'.
    """
    if cell.outcome() is not None:
        changes = cell.changes()
        return f"another configuration: {'; '.join(changes)}" if changes else "complete"
    sight = Watch(cell.lease_prefix).look()
    if sight.state == "held":
        return f"runs: {sight.owner.describe()}"
    return "begun" if begun else "open"
