"""The verb `sweep`: runs every cell of a grid, lists their commands, or prints their tables."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.cli import command_line
from gkd.configuration import buckets
from gkd.configuration.gin_files import references_in
from gkd.configuration.setting_values import check_call
from gkd.configuration.verb_settings import SWEEP
from gkd.errors import InvalidValue, UserError
from gkd.files.json_files import shown
from gkd.metrics.descriptions import best_mode_of, is_divergence
from gkd.runs import setting_changes
from gkd.runs.lease import Lease
from gkd.runs.run_directory import SUMMARY_FILE
from gkd.sweep import claims, status, table
from gkd.sweep.cells import Cell
from gkd.sweep.runner import Runner

AVERAGE_OVER = "seed"  # by default the table averages over this axis, where there is one
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")
_TRAIN = "/gkd.train.train.train."  # how bindings of the verb `train` begin
_SCHEDULE = "/gkd.configuration.experiment.Schedule."
# Verbs of prerequisites beside train, with the argument that names their result.
_RESULTS = {"infer": "output", "convert": "target"}
_PREREQUISITE, _EVALUATION = "prerequisite", "evaluation"  # labels that no axis may have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The columns and rows of a sweep's table.

    Attributes:
      metrics: columns, e.g. 'rouge2', 'seconds_per_step'; None is the BEST_METRIC of every task.
      average_over: the axis that the table averages over, if the sweep has it.
      baseline: options, by axis, of the rows that the others are compared with in pairs, e.g.
        {'method': 'sft'}.
      claim: one sentence that ACTION 'verdict' decides; None where there is nothing to decide.
      comparisons: criteria of the claim, see `gkd.sweep.claims.decide`.
      at_least: number of comparisons that must hold; None is all.
    """

    metrics: Sequence[str] | None = None
    average_over: str = AVERAGE_OVER
    baseline: Mapping[str, str] | None = None
    claim: str | None = None
    comparisons: Mapping[str, Any] | None = None
    at_least: int | None = None


def sweep(
    directory: str,
    gin_files: Sequence[str],
    axes: Mapping[str, Any],
    action: str = "run",
    overrides: Sequence[str] = (),
    evaluations: Mapping[str, Any] | None = None,
    prerequisites: Mapping[str, Any] | None = None,
    results: Results = Results(),
    max_parallel: int = 1,
    retries: int = 3,
    launcher: Sequence[str] = (),
    allow_module: Sequence[str] = (),
) -> None:
    """Runs every cell of the product of the axes, each in its own process.

    Complete cells are skipped, cells that crashed or were preempted are restarted, and a failed
    cell is reported while the others go on; the same command continues a stopped sweep. All cells
    are checked before the first one starts.

    Args:
      directory: the sweep's directory; a cell's MODEL_DIR is DIRECTORY/OPTION/OPTION/…
      gin_files: gin files that every cell includes first.
      axes: for each axis, its options by name: each a list of further gin files (names in .gin)
        and overrides (NAME=VALUE) with {axis} for the option chosen on an axis. A later axis
        overrides an earlier one; a cell waits for an earlier one whose MODEL_DIR it names.
      action: 'run'; 'list' to print one shell command per cell; 'status' to print the state of
        every cell; 'table' to print the results and write table.md and table.json; 'verdict' to
        decide the sweep's claim and write verdict.md and verdict.json.
      overrides: overrides applied last to every cell, but not to prerequisites, which other sweeps
        may share.
      evaluations: by name, lists of gin files and overrides for the verb `evaluate`, with which
        each complete run is evaluated. The table then shows these evaluations, not the last one
        during training.
      prerequisites: by name, commands whose results several cells need, run once and before them:
        ['train', gin files and overrides], ['infer', '--NAME=VALUE', …] or ['convert', source,
        target, '--NAME=VALUE', …]. A cell waits for those whose MODEL_DIR, output or target its
        configuration names; those that no incomplete cell needs are not run.
      results: columns and rows of the table.
      max_parallel: greatest number of cells that run at the same time.
      retries: number of restarts of a cell that crashed or was preempted.
      launcher: words in place of `python -m gkd`, in which {name} becomes the cell's name:
        ['env', 'TPU_NAME={name}', 'bash', 'launch/tpu_vm.sh', 'all']. The command must write to a
        place that this process can read, or the cell never counts as complete.
      allow_module: modules that the cells' gin files may import.

    Raises:
      ValueError: the grid or a configuration is wrong, or cells failed.
      Stopped: SIGTERM or Ctrl-C was received; the running cells have saved.
    """
    check_call(SWEEP, locals())
    cells = plan(directory, gin_files, axes, overrides, evaluations, prerequisites, allow_module)
    average_over = results.average_over
    if average_over not in axes and average_over != AVERAGE_OVER:
        raise InvalidValue(
            f"AVERAGE_OVER is {average_over!r}, but the axes are {', '.join(axes)}: choose one"
        )
    _check_launch_names(cells, launcher)
    measured = [c for c in cells if bool(c.run) == bool(evaluations) and not c.is_prerequisite]
    _check_results(measured, results, bool(evaluations))
    if action == "list":
        for cell in cells:
            print(shlex.join(cell.command(launcher)))
        return
    place = pathlib.Path(buckets.local(directory))
    others = [(cell, cell.changes()) for cell in cells if cell.outcome() is not None]
    others = [f"{cell.name} ({'; '.join(changes)})" for cell, changes in others if changes]
    if action == "status":
        status.console(stderr=False).print(status.table(cells))
    elif action in ("table", "verdict"):
        _write(action, place, measured, others, results)
    elif others:
        raise InvalidValue(
            f"{_made_otherwise(others)}; nothing was run: set it back, choose another "
            "sweep.sweep.directory, or move what is there away"
        )
    else:
        place.mkdir(parents=True, exist_ok=True)
        with Lease(place / "sweep", f"the sweep's directory {directory}") as lease:
            Runner(cells, launcher, max_parallel, retries, place / "logs", lease).run()


def _write(action, place, rows, others, results) -> None:
    if others:
        print(f"sweep: warning: {_made_otherwise(others)}", file=sys.stderr)
    warnings = [_made_otherwise([other]) for other in others]
    (_write_table if action == "table" else _write_verdict)(place, rows, results, warnings)


def _check_results(rows, results, evaluated) -> None:
    """Refuses a baseline or a comparison without its rows before hours of runs."""
    if not evaluated:
        _warn_of_single_batches(results)
    outcomes = [(cell.labels, None) for cell in rows]
    table.averages(outcomes, ["any"], results.average_over, results.baseline)
    if results.claim and results.comparisons:
        _decide(outcomes, results)


def _warn_of_single_batches(results) -> None:
    """Warns of divergences during training, which are those of the first batch alone."""
    compared = [each.get("metric") for each in (results.comparisons or {}).values()]
    names = [name for name in (*(results.metrics or ()), *compared) if is_divergence(name)]
    if names:
        print(
            f"sweep: warning: training measures {', '.join(dict.fromkeys(names))} on one batch; "
            "set EVALUATIONS = {'references': []} to measure all examples",
            file=sys.stderr,
        )


def _write_table(place, rows, results, warnings) -> None:
    best = dict.fromkeys(cell.best_metric for cell in rows if cell.best_metric)
    outcomes = [(dict(cell.labels), cell.outcome()) for cell in rows]
    names = list(results.metrics or best)
    averages = table.averages(outcomes, names, results.average_over, results.baseline)
    table.write(place, {**averages, "warnings": warnings})


def _write_verdict(place, rows, results, warnings) -> None:
    if not results.claim or not results.comparisons:
        raise InvalidValue("this sweep has no CLAIM with COMPARISONS: there is nothing to decide")
    decided = _decide([(cell.labels, cell.outcome()) for cell in rows], results)
    claims.write(place, {**decided, "warnings": warnings})


def _decide(outcomes, results) -> dict[str, Any]:
    return claims.decide(
        outcomes, results.claim, results.comparisons, results.at_least, results.average_over
    )


def plan(
    directory: str,
    gin_files: Sequence[str],
    axes: Mapping[str, Any],
    overrides: Sequence[str] = (),
    evaluations: Mapping[str, Any] | None = None,
    prerequisites: Mapping[str, Any] | None = None,
    allow_module: Sequence[str] = (),
) -> list[Cell]:
    """Builds and checks the cells of a sweep.

    Args:
      directory, gin_files, axes, overrides, evaluations, prerequisites, allow_module: as in
        `sweep`.

    Returns:
      The prerequisites, then the runs, the last axis changing fastest, each run followed by its
      evaluations.

    Raises:
      ValueError: a configuration is wrong; the one-line text names the axis or the cell.
    """
    if not axes:
        raise InvalidValue("sweep.axes is empty: give at least one axis")
    evaluated = {_EVALUATION: evaluations} if evaluations else {}
    for axis in axes:
        if axis == _PREREQUISITE or axis in evaluated:
            raise InvalidValue(f"axis {axis!r} of the sweep: the name is reserved; choose another")
    _check_options({**axes, **evaluated})
    ready: list[tuple[str, Cell]] = []
    for name, words in (prerequisites or {}).items():
        place, cell = _prerequisite(name, words, ready, allow_module)
        if place in (other for other, _ in ready):
            raise InvalidValue(f"prerequisite {name}: another one writes to {place} too")
        ready.append((place, cell))
    cells = [cell for _, cell in ready]
    for labels in itertools.product(*axes.values()):
        chosen = dict(zip(axes, labels, strict=True))
        settings = [text for axis, label in chosen.items() for text in axes[axis][label]]
        settings = _filled([*settings, *overrides], chosen)
        path = "/".join([str(directory), *labels])
        moved = [text for text in settings if text.startswith("MODEL_DIR")]
        if moved:
            raise InvalidValue(f"{moved[0]}: a cell's MODEL_DIR is the sweep's directory/options")
        place = f"MODEL_DIR={path!r}"
        summary = f"{path}/{SUMMARY_FILE}"
        texts = [*gin_files, *settings, place]
        run = _cell("train", chosen, texts, summary, ready, allow_module)
        cells.append(run)
        ready.append((path, run))
        for label, more in (evaluations or {}).items():
            file = f"{path}/evaluation-{label}.json"
            texts = [*gin_files, *settings, place, *_filled(more, chosen)]
            texts.append(f"evaluate.evaluate.output={file!r}")
            names = {**chosen, _EVALUATION: label}
            cell = _cell("evaluate", names, texts, file, ready, allow_module)
            needs = tuple(dict.fromkeys((*cell.needs, run)))
            cells.append(dataclasses.replace(cell, run=run, needs=needs))
    return cells


def _filled(texts: Sequence[str], chosen: Mapping[str, str]) -> list[str]:
    """Replaces {axis} by the option that is chosen on the axis."""
    for axis, label in chosen.items():
        texts = [text.replace(f"{{{axis}}}", label) for text in texts]
    return list(texts)


def _cell(verb, labels, settings, result, ready, allowed) -> Cell:
    """Builds a cell from gin files and overrides, and checks its configuration."""
    files = tuple(text for text in settings if text.endswith(".gin"))
    values = tuple(text for text in settings if not text.endswith(".gin"))
    command = command_line.Command(verb, files, values, tuple(allowed))
    try:
        reader = command_line.read_configuration(command)
    except UserError as error:
        raise InvalidValue(f"cell {'/'.join(labels.values())}: {error}") from error
    arguments = [verb, *(f"--gin_file={name}" for name in files)]
    arguments += [f"--allow_module={name}" for name in allowed]
    arguments += [f"--gin.{text}" for text in values]
    if result is None:
        result = f"{reader.value_of(_TRAIN + 'model_dir')}/{SUMMARY_FILE}"
    dry = reader.value_of(_TRAIN + "dry_run")
    steps, metric, mode = (
        reader.value_of(_SCHEDULE + name) for name in ("train_steps", "best_metric", "best_mode")
    )
    set_by = setting_changes.settings_of(reader, verb)
    named = [setting.value for setting in set_by.values()]
    needs = () if dry else _needed(named, ready)
    return Cell(
        labels=labels,
        arguments=tuple(arguments),
        result=result,
        settings=set_by,
        train_steps=steps,
        best_metric=metric,
        best_mode=mode or best_mode_of(metric),
        dry_run=bool(dry),
        needs=needs,
    )


def _prerequisite(
    name: str, words: Any, ready: Sequence[tuple[str, Cell]], allowed: Sequence[str]
) -> tuple[str, Cell]:
    """Builds and checks a prerequisite; returns the path it writes to, and its cell."""
    texts = list(words) if isinstance(words, list | tuple) else []
    if (
        not texts
        or not all(isinstance(t, str) for t in texts)
        or texts[0] not in ("train", *_RESULTS)
    ):
        raise InvalidValue(
            f"prerequisite {name} is {words!r}: write ['train', 'FILE.gin', 'NAME=VALUE', …], "
            "['infer', '--NAME=VALUE', …] or ['convert', 'SOURCE', 'TARGET', '--NAME=VALUE', …]"
        )
    labels = {_PREREQUISITE: _PREREQUISITE, "name": name}
    _check_options({_PREREQUISITE: {name: []}})
    if texts[0] == "train":
        _check_options({_PREREQUISITE: {name: texts[1:]}})
        cell = _cell("train", labels, texts[1:], None, ready, allowed)
        return os.path.dirname(cell.result), dataclasses.replace(cell, is_prerequisite=True)
    try:
        arguments = command_line.parse_arguments(texts).arguments
    except UserError as error:
        raise InvalidValue(f"prerequisite {name}: {error}") from error
    if arguments.get("allow_module"):
        raise InvalidValue(f"prerequisite {name}: give --allow_module to the sweep itself")
    if texts[0] == "infer":
        texts += [f"--allow_module={module}" for module in allowed]
        arguments = {**arguments, "allow_module": list(allowed) or None}
    needs = _needed(list(arguments.values()), ready)
    result = arguments[_RESULTS[texts[0]]]
    cell = Cell(labels, tuple(texts), result, arguments, needs=needs, is_prerequisite=True)
    return result, cell


def _needed(named: Any, ready: Sequence[tuple[str, Cell]]) -> tuple[Cell, ...]:
    """The prerequisites whose output a configuration names."""
    texts = {os.path.normpath(text) for text in references_in(named, str)}
    return tuple(
        cell
        for place, cell in ready
        if any(f"{text}/".startswith(f"{os.path.normpath(place)}/") for text in texts)
    )


def _check_launch_names(cells: Sequence[Cell], launcher: Sequence[str]) -> None:
    """Refuses two cells with one launch name: on one slice they would stop each other."""
    known: dict[str, Cell] = {}
    for cell in cells if any("{name}" in word for word in launcher) else ():
        other = known.setdefault(cell.launch_name, cell)
        if other is not cell:
            raise InvalidValue(
                f"cells {other.name} and {cell.name} are both {cell.launch_name} to the launcher: "
                "rename an option"
            )


def _made_otherwise(others: Sequence[str]) -> str:
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"complete, but with another configuration: {others[0]}{more}"


def _check_options(axes: Mapping[str, Any]) -> None:
    for axis, options in axes.items():
        if not isinstance(axis, str) or not isinstance(options, Mapping):
            raise InvalidValue(
                f"axis {shown(axis)} of the sweep is {shown(options)}: write "
                "'axis': {'option': [gin files and overrides], …}"
            )
        if not options:
            raise InvalidValue(f"axis {axis} of the sweep has no options")
        for label, settings in options.items():
            if not isinstance(label, str) or not _LABEL.fullmatch(label):
                raise InvalidValue(
                    f"axis {axis}: the option {label!r} names a folder: use text of letters, "
                    "digits and . _ = + -, beginning with a letter or digit"
                )
            texts = list(settings) if isinstance(settings, list | tuple) else []
            wrong = [t for t in texts if not isinstance(t, str) or not re.search(r"=|\.gin$", t)]
            if not isinstance(settings, list | tuple) or wrong:
                raise InvalidValue(
                    f"axis {axis}, option {label}: {(wrong or [settings])[0]!r} in place of a list "
                    "of gin files (NAME.gin) and overrides ('NAME=VALUE')"
                )
