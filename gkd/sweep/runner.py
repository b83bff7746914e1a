"""Runs the cells of a sweep: prerequisites first, some in parallel, with retries after crashes."""

from __future__ import annotations

import contextlib
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import rich.live
import rich.table

from gkd.errors import InvalidValue
from gkd.runs.lease import Lease, LeaseLost, Watch
from gkd.runs.signals import EXIT_STOPPED, Stopped, StopRequest, end_with_parent
from gkd.sweep import status
from gkd.sweep.cells import Cell

_POLL_SECONDS = 0.2
_REFRESH_SECONDS = 5.0  # between updates of the table on a terminal: it reads every cell's files
_FAILED = (1, 2)  # exit codes of errors that a retry would repeat


class Runner:
    """Runs the cells of a sweep, and tracks which are complete, running, waiting or failed."""

    def __init__(
        self,
        cells: Sequence[Cell],
        launcher: Sequence[str],
        max_parallel: int,
        retries: int,
        logs: pathlib.Path,
        lease: Lease,
    ):
        """Prepares to run the cells; nothing is started yet.

        Args:
          cells: the cells from `sweep.plan`, in the order in which they start.
          launcher: words in place of `python -m gkd`, see `sweep.sweep`.
          max_parallel: greatest number of cells that run at the same time.
          retries: number of restarts of a cell that crashed or was preempted.
          logs: folder for the cells' output if they run in parallel.
          lease: the lease on the sweep's directory, held by the caller.
        """
        self._cells, self._launcher = list(cells), tuple(launcher)
        self._max_parallel, self._retries, self._logs = max_parallel, retries, logs
        self._tries = [0] * len(self._cells)
        self._lease = lease
        self._running: dict[int, subprocess.Popen] = {}
        self._watches = [Watch(cell.lease_prefix) for cell in self._cells]
        self._elsewhere: dict[int, str] = {}  # cells run by another process, and its description
        self._end_with_runner = end_with_parent()
        self._ended: dict[int, str] = {}  # states of cells that are not started (again)
        self._console = status.console(stderr=True)

    def run(self) -> None:
        """Runs the incomplete cells.

        Raises:
          ValueError: at least one cell failed.
          Stopped: SIGTERM or Ctrl-C was received; the running cells have saved.
        """
        self._skip()
        try:
            with StopRequest() as stop, self._shown() as show:
                self._loop(stop, show)
        except LeaseLost:  # another runner has taken over and waits for these cells to end
            for process in self._running.values():
                process.send_signal(signal.SIGTERM)
            for process in self._running.values():
                process.wait()
            raise
        except BaseException:  # a second Ctrl-C: kill immediately
            for process in self._running.values():
                process.kill()
                process.wait()
            raise
        self._console.print(self._table())
        failed = [
            f"{self._cells[number].name} ({state.removeprefix('failed: ')})"
            for number, state in self._ended.items()
            if state.startswith("failed")
        ]
        if failed:
            raise InvalidValue(
                f"{len(failed)} of {len(self._cells)} cells failed: {', '.join(failed)}; the same "
                "command tries them again"
            )

    def _skip(self) -> None:
        """Marks the complete cells, and the prerequisites that no incomplete cell needs."""
        for number, cell in enumerate(self._cells):
            if cell.outcome() is not None:
                self._ended[number] = "complete"
        _report(f"{len(self._cells)} cells, {len(self._ended)} complete")
        for number in self._ended:
            _report(f"{self._place(number)}: complete")
        for number in reversed(range(len(self._cells))):  # a prerequisite may need another
            cell = self._cells[number]
            waiting = [c for i, c in enumerate(self._cells) if i not in self._ended]
            if cell.is_prerequisite and not any(cell in other.needs for other in waiting):
                self._ended.setdefault(number, "not needed")

    def _loop(self, stop: StopRequest, show) -> None:
        asked: list[int] = []
        while True:
            self._lease.check()
            if stop.requested and not asked:
                asked = list(self._running)
                for process in self._running.values():
                    process.send_signal(signal.SIGTERM)
            for number, process in list(self._running.items()):
                if process.poll() is not None:
                    self._note(number, process.returncode, stop.requested)
            if stop.requested and not self._running:
                places = ", ".join(map(self._place, asked)) or "between cells"
                raise Stopped(f"{stop.signal_name} in {places}; the same command continues")
            if not stop.requested:
                self._start()
                if not self._running and not self._elsewhere:
                    return
            show()
            time.sleep(_POLL_SECONDS)

    def _start(self) -> None:
        """Starts cells in order, up to `max_parallel`; a cell waits for its prerequisites."""
        for number, cell in enumerate(self._cells):
            if len(self._running) >= self._max_parallel:
                return
            if number in self._ended or number in self._running or self._awaited(cell):
                continue
            if self._runs_elsewhere(number) or number in self._ended:
                continue
            command = cell.command(self._launcher)
            _report(f"{self._place(number)}: {shlex.join(command)}")
            self._tries[number] += 1
            with contextlib.ExitStack() as stack:
                streams = {}
                if self._max_parallel > 1:  # keep the outputs of parallel cells apart
                    log = self._log(cell)
                    log.parent.mkdir(parents=True, exist_ok=True)
                    streams["stdout"] = stack.enter_context(log.open("ab"))
                    streams["stderr"] = subprocess.STDOUT
                # Its own session: the terminal's Ctrl-C would reach it beside our SIGTERM, and the
                # second of two signals ends a run without saving.
                self._running[number] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, start_new_session=True,
                    preexec_fn=self._end_with_runner, **streams,
                )  # fmt: skip

    def _runs_elsewhere(self, number: int) -> bool:
        """True while another process writes a cell's output, for example one of a killed runner.

        Once that process has ended, the cell is complete or can start.
        """
        cell = self._cells[number]
        if cell.dry_run:
            return False
        sight = self._watches[number].look()
        if sight.state in ("held", "silent"):
            owner = sight.owner.describe() if sight.owner else "a damaged lease"
            if self._elsewhere.get(number) != owner:
                self._elsewhere[number] = owner
                _report(f"{self._place(number)}: waits, its output is in use by {owner}")
            return True
        if self._elsewhere.pop(number, None) and cell.outcome() is not None:
            self._ended[number] = "complete"
            _report(f"{self._place(number)}: complete")
        return False

    def _awaited(self, cell: Cell) -> list[str]:
        """The names of the prerequisites of a cell that are not complete."""
        numbers = {cell: number for number, cell in enumerate(self._cells)}
        return [c.name for c in cell.needs if self._ended.get(numbers[c]) != "complete"]

    def _note(self, number: int, code: int, stopping: bool) -> None:
        del self._running[number]
        cell = self._cells[number]
        if stopping and code in (0, EXIT_STOPPED):
            return
        if code and not cell.dry_run and self._watches[number].look().state == "held":
            self._tries[number] -= 1  # refused, because another process runs this cell
            return
        if code and code not in _FAILED and self._tries[number] <= self._retries:
            _report(f"{self._place(number)}: exit code {code}, restarting")
            return
        state = f"failed: exit code {code}"
        if code == 0:
            state = "complete"
            if cell.outcome() is None:
                state = f"failed: ended, but {cell.result} does not mark it complete"
            state = "traced" if cell.dry_run else state
        self._ended[number] = state
        if state.startswith("failed"):
            _report(f"{self._place(number)}: {state}{self._last_line(cell)}")
        elif self._max_parallel > 1:
            _report(f"{self._place(number)}: {state}")

    def _table(self) -> rich.table.Table:
        """The state of every cell, as a table."""
        states = dict(self._ended)
        for number, cell in enumerate(self._cells):
            if number in self._running:
                states[number] = "runs"
            elif number in self._elsewhere:
                states[number] = f"runs elsewhere: {self._elsewhere[number]}"
            elif number not in states and (awaited := self._awaited(cell)):
                states[number] = f"waits for {', '.join(awaited)}"
        return status.table(self._cells, states, self._tries)

    @contextlib.contextmanager
    def _shown(self):
        """Yields a function that updates the table on a terminal, every few seconds at most."""
        if self._max_parallel == 1 or not self._console.is_terminal:
            yield lambda: None
            return
        with rich.live.Live(console=self._console, transient=True, auto_refresh=False) as live:
            latest = -_REFRESH_SECONDS

            def show() -> None:
                nonlocal latest
                if time.monotonic() - latest >= _REFRESH_SECONDS:
                    live.update(self._table(), refresh=True)
                    latest = time.monotonic()

            yield show

    def _log(self, cell: Cell) -> pathlib.Path:
        return self._logs / f"{cell.name}.log"

    def _last_line(self, cell: Cell) -> str:
        """The last line of a failed cell's output, and the path of its log."""
        if self._max_parallel == 1:
            return ""
        log = self._log(cell)
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1].strip() if lines else 'it printed nothing'} ({log})"

    def _place(self, number: int) -> str:
        return f"[{number + 1}/{len(self._cells)}] {self._cells[number].name}"


def _report(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)
