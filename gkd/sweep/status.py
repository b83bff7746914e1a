"""Where each cell of a sweep stands, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import rich.box
import rich.console
import rich.table
import rich.text

from gkd.runs.lease import Watch
from gkd.sweep.cells import Cell

_STYLES = {"complete": "green", "runs": "cyan", "failed": "red", "another": "red"}
_WIDTH = 120  # of what is not a terminal: enough for long names


def console(stderr: bool) -> rich.console.Console:
    """Where the table is printed."""
    made = rich.console.Console(stderr=stderr)
    return made if made.is_terminal else rich.console.Console(stderr=stderr, width=_WIDTH)


def table(
    cells: Sequence[Cell], states: Mapping[int, str] | None = None, tries: Sequence[int] = ()
) -> rich.table.Table:
    """Name, state, the step reached, starts and the best metric so far of each cell.

    Args:
      cells: of `sweep.plan`.
      states: of those that a launch of the sweep knows about, by number; the others' come from what
        is on disk.
      tries: how often this launch started each, where its directory does not say.
    """
    made = rich.table.Table(box=rich.box.SIMPLE)
    for name in ("cell", "state", "step", "starts", "best so far"):
        side = "left" if name in ("cell", "state") else "right"
        made.add_column(name, justify=side, no_wrap=name != "state", overflow="fold")
    for number, cell in enumerate(cells):
        step, starts, best = cell.progress()
        state = (states or {}).get(number) or state_on_disk(cell, bool(step or starts))
        if state == "complete" and cell.train_steps and cell.run is None:
            step = cell.train_steps
        starts = starts or (tries[number] if tries else None)
        metric = "" if best is None else f"{cell.best_metric} {best:.4g}"
        of = f"{step or 0}/{cell.train_steps}" if cell.train_steps and cell.run is None else ""
        style = _STYLES.get(state.split()[0], "")
        made.add_row(cell.name, rich.text.Text(state, style), of, str(starts or ""), metric)
    return made


def state_on_disk(cell: Cell, begun: bool) -> str:
    """What its files say.

    Args:
      cell: of the sweep.
      begun: whether it was ever started.
    """
    if cell.outcome() is not None:
        changes = cell.changes()
        return f"another configuration: {'; '.join(changes)}" if changes else "complete"
    sight = Watch(cell.lease_prefix).look()
    if sight.state == "held":
        return f"runs: {sight.owner.describe()}"
    return "begun" if begun else "open"
