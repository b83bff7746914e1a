"""Runs a sweep's cells: several at a time, again after a crash; a table of where each stands."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table

from gkd.jobs.signals import EXIT_STOPPED, Stopped, StopRequest

_POLL_SECONDS = 0.2
_FAILED = (1, 2)  # what a run says of itself: trying again would end the same way


class Runner:
    """What of a sweep is complete, runs, waits or has failed."""

    def __init__(self, cells: Sequence[Any], launcher: Sequence[str], at_once: int, retries: int):
        """Prepares.

        Args:
          cells: of `sweep.plan`.
          launcher: see `sweep.sweep`.
          at_once: how many processes at a time.
          retries: how often a cell that crashed or was preempted is started again.
        """
        self._cells, self._launcher = list(cells), tuple(launcher)
        self._at_once, self._retries = at_once, retries
        self._tries = [0] * len(self._cells)
        self._running: dict[int, subprocess.Popen] = {}
        self._ended: dict[int, int] = {}  # exit codes of cells that are not tried again

    def run(self) -> None:
        """Runs what is not complete.

        Raises:
          ValueError: cells failed.
          Stopped: SIGTERM or Ctrl-C came; the running cells have saved.
        """
        complete = [cell.outcome() is not None for cell in self._cells]
        _report(f"{len(self._cells)} cells, {sum(complete)} complete")
        for number in (number for number, done in enumerate(complete) if done):
            _report(f"{self._place(number)}: complete")
            self._ended[number] = 0
        try:
            with StopRequest() as stop:
                self._loop(stop)
        except BaseException:  # a second Ctrl-C: at once
            for process in self._running.values():
                process.kill()
                process.wait()
            raise
        failed = [f"{self._cells[n].name} (exit code {c})" for n, c in self._ended.items() if c]
        if self._at_once > 1 or failed:
            self.print_table()
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(self._cells)} cells failed: {', '.join(failed)}; the same "
                "command tries them again"
            )

    def _loop(self, stop: StopRequest) -> None:
        asked: list[int] = []
        while True:
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
                if not self._running:
                    return
            time.sleep(_POLL_SECONDS)

    def _start(self) -> None:
        """Starts cells in order, while there is room; an evaluation waits for its run."""
        for number, cell in enumerate(self._cells):
            if len(self._running) >= self._at_once:
                return
            if number in self._ended or number in self._running:
                continue
            if cell.run is not None and cell.run.outcome() is None:
                continue  # not yet; or it failed, or was a dry run
            command = cell.command(self._launcher)
            _report(f"{self._place(number)}: {shlex.join(command)}")
            self._tries[number] += 1
            # Its own session: the terminal's Ctrl-C would reach it beside our SIGTERM, and the
            # second of two signals ends a run without saving.
            self._running[number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def _note(self, number: int, code: int, stopping: bool) -> None:
        del self._running[number]
        if stopping and code in (0, EXIT_STOPPED):
            return
        if code == 0 or code in _FAILED or self._tries[number] > self._retries:
            self._ended[number] = code
            if code:
                _report(f"{self._place(number)}: failed with exit code {code}")
        else:
            _report(f"{self._place(number)}: exit code {code}, it is started again")

    def print_table(self) -> None:
        """Where each cell stands."""
        table = rich.table.Table("cell", "state", "starts", box=rich.box.SIMPLE)
        for number, cell in enumerate(self._cells):
            code = self._ended.get(number)
            state = {None: "waits", 0: "complete"}.get(code, f"failed with exit code {code}")
            state = "runs" if number in self._running else state
            table.add_row(cell.name, state, str(self._tries[number]))
        rich.console.Console(stderr=True).print(table)

    def _place(self, number: int) -> str:
        return f"[{number + 1}/{len(self._cells)}] {self._cells[number].name}"


def _report(text: str) -> None:
    print(f"sweep: {text}", file=sys.stderr, flush=True)
