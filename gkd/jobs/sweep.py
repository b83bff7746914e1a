"""The verb `sweep`: runs every cell of a grid, lists their commands, or prints their tables."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.jobs import command_line, sweep_table
from gkd.jobs.sweep_runner import Runner
from gkd.jobs.training_loop import SUMMARY_FILE

ACTIONS = ("run", "list", "status", "table")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_TRAIN = "/gkd.jobs.train.train."  # how bindings of the verb `train` begin


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep, or an evaluation of it.

    Attributes:
      labels: the option of each axis, in the axes' order; an evaluation's own comes last.
      arguments: what follows `python -m gkd`.
      result: the JSON file that it writes at its end.
      train_steps: the step at which the run is complete.
      best_metric: the metric that its configuration names.
      run: of an evaluation, the run that it measures.
    """

    labels: Mapping[str, str]
    arguments: tuple[str, ...]
    result: pathlib.Path
    train_steps: int
    best_metric: str | None
    run: Cell | None = None

    @property
    def name(self) -> str:
        """The options joined; a run's is its directory within the sweep's."""
        return "/".join(self.labels.values())

    def command(self, launcher: Sequence[str] = ()) -> list[str]:
        """The command, with this process's own Python or a launcher, see `sweep`."""
        name = self.name.replace("/", "-").replace("_", "-").replace(".", "-").lower()
        words = [word.replace("{name}", name) for word in launcher]
        return [*(words or [sys.executable, "-m", "gkd"]), *self.arguments]

    def outcome(self) -> dict[str, Any] | None:
        """What it wrote; None while it is not complete, or its run has been trained since."""
        try:
            found = json.loads(self.result.read_text(encoding="utf-8"))
            written = self.result.stat().st_mtime_ns
            if self.run is None:
                return found if found["steps"] == self.train_steps else None
            current = self.run.outcome() and written >= self.run.result.stat().st_mtime_ns
            return found if current else None
        except (OSError, ValueError, KeyError, TypeError):  # none, or cut off
            return None


def sweep(
    directory: str,
    gin_files: Sequence[str],
    axes: Mapping[str, Any],
    action: str = "run",
    overrides: Sequence[str] = (),
    evaluations: Mapping[str, Any] | None = None,
    metrics: Sequence[str] | None = None,
    over: str = "seed",
    at_once: int = 1,
    retries: int = 3,
    launcher: Sequence[str] = (),
) -> None:
    """Runs every cell of the product of the axes, each in a process of its own.

    A complete cell is skipped, one that crashed or was preempted is started again, a failed one is
    reported and the rest go on; the same command continues. All cells are checked before the first
    one starts.

    Args:
      directory: of the sweep; a cell's MODEL_DIR is DIRECTORY/OPTION/OPTION/…
      gin_files: what all cells begin with.
      axes: by name, the options by name: each a list of further gin files (names in .gin) and
        overrides (NAME=VALUE). A later axis overrides an earlier one.
      action: 'run'; 'list' prints one shell command a cell; 'status' which are complete; 'table'
        what came out, and writes it into the directory as table.md and table.json.
      overrides: of every cell, the last to be applied.
      evaluations: by name, such lists for the verb `evaluate`: what each run is measured with once
        it is complete. The table is then of them, not of the runs' last evaluation.
      metrics: of the table, e.g. 'rouge2', 'seconds_per_step'; None is BEST_METRIC (of every task).
      over: the axis that the table averages over, where there is one of that name.
      at_once: how many cells run at a time.
      retries: how often a cell is started again that did not end by itself.
      launcher: words in place of `python -m gkd`, {name} being the cell's name in them: ['env',
        'TPU_NAME={name}', 'bash', 'launch/tpu_vm.sh', 'all']. What it runs must write where this
        process can read it, for a cell to be complete.

    Raises:
      ValueError: a wrong grid or configuration; cells that failed.
      Stopped: SIGTERM or Ctrl-C came; the running cells have saved.
    """
    if at_once < 1 or retries < 0:
        raise ValueError(f"AT_ONCE is {at_once}, RETRIES {retries}: use 1 or more, 0 or more")
    if action not in ACTIONS:
        raise ValueError(f"ACTION is {action!r}: choose one of {', '.join(ACTIONS)}")
    cells = plan(directory, gin_files, axes, overrides, evaluations)
    if action == "list":
        for cell in cells:
            print(shlex.join(cell.command(launcher)))
    elif action == "status":
        for cell in cells:
            print(f"{'complete' if cell.outcome() is not None else 'open':8}  {cell.name}")
    elif action == "table":
        names = list(metrics or dict.fromkeys(cell.best_metric for cell in cells))
        rows = [cell for cell in cells if bool(cell.run) == bool(evaluations)]
        outcomes = [(dict(cell.labels), cell.outcome()) for cell in rows]
        sweep_table.write(pathlib.Path(directory), sweep_table.averages(outcomes, names, over))
    else:
        Runner(cells, launcher, at_once, retries).run()


def plan(
    directory: str,
    gin_files: Sequence[str],
    axes: Mapping[str, Any],
    overrides: Sequence[str] = (),
    evaluations: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The cells of a sweep, the last axis changing fastest, each followed by its evaluations.

    Args:
      As `sweep`'s.

    Raises:
      ValueError: in one line that names the axis or the cell; every configuration is checked.
    """
    if not axes:
        raise ValueError("sweep.axes is empty: give at least one axis")
    _check_options({**axes, **({"evaluation": evaluations} if evaluations else {})})
    cells = []
    for labels in itertools.product(*axes.values()):
        chosen = dict(zip(axes, labels, strict=True))
        settings = [text for axis, label in chosen.items() for text in axes[axis][label]]
        path = "/".join([str(directory), *labels])
        moved = [text for text in (*settings, *overrides) if text.startswith("MODEL_DIR")]
        if moved:
            raise ValueError(f"{moved[0]}: a cell's MODEL_DIR is the sweep's directory/options")
        place = f"MODEL_DIR={path!r}"
        run = _cell("train", chosen, [*gin_files, *settings, *overrides, place], path)
        cells.append(run)
        for label, more in (evaluations or {}).items():
            file = f"{path}/evaluation-{label}.json"
            output = f"evaluate.evaluate.output={file!r}"
            texts = [*gin_files, *settings, *overrides, place, *more, output]
            cells.append(_cell("evaluate", {**chosen, "evaluation": label}, texts, file, run))
    return cells


def _cell(verb, labels, settings, path, run=None) -> Cell:
    """A checked cell of gin files and overrides, in this order."""
    files = tuple(text for text in settings if text.endswith(".gin"))
    values = tuple(text for text in settings if not text.endswith(".gin"))
    try:
        reader = command_line.read_configuration(command_line.Command(verb, files, values))
    except ValueError as error:
        raise ValueError(f"cell {'/'.join(labels.values())}: {error}") from error
    arguments = [verb, *(f"--gin_file={name}" for name in files)]
    arguments += [f"--gin.{text}" for text in values]
    steps, metric = (reader.value_of(_TRAIN + name) for name in ("train_steps", "best_metric"))
    result = pathlib.Path(path) if run else pathlib.Path(path, SUMMARY_FILE)
    return Cell(labels, tuple(arguments), result, steps, metric, run)


def _check_options(axes: Mapping[str, Any]) -> None:
    for axis, options in axes.items():
        if not options:
            raise ValueError(f"axis {axis} of the sweep has no options")
        for label, settings in options.items():
            if not isinstance(label, str) or not _LABEL.fullmatch(label):
                raise ValueError(
                    f"axis {axis}: the option {label!r} names a folder: use text of letters, "
                    "digits and . _ = + -, beginning with a letter or digit"
                )
            texts = [] if isinstance(settings, str) else list(settings)
            wrong = [t for t in texts if not isinstance(t, str) or not re.search(r"=|\.gin$", t)]
            if isinstance(settings, str) or wrong:
                raise ValueError(
                    f"axis {axis}, option {label}: {(wrong or [settings])[0]!r} in place of a list "
                    "of gin files (NAME.gin) and overrides ('NAME=VALUE')"
                )
