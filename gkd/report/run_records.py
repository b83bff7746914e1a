"""Reads run directories for a report: settings, metrics, speed, samples, evaluations and state."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gkd.checkpoints.folders import CHECKPOINTS_FOLDER
from gkd.errors import InvalidFile, UserError, as_user_error, one_line
from gkd.files.json_files import Field, check_fields, read_json
from gkd.runs.flat_settings import FlatSetting, flattened, parsed_bindings
from gkd.runs.lease import Watch, run_prefix
from gkd.runs.metrics_log import (
    METRICS_FILE,
    SAMPLES_FILE,
    TENSORBOARD_FOLDER,
    read_metrics,
    read_rows,
    read_samples,
)
from gkd.runs.monitor import SPEED_FILE
from gkd.runs.run_directory import (
    LAUNCHES_FILE,
    SUMMARY_FILE,
    TEACHER_EVALUATION_FILE,
    read_launches,
)

_OF_A_RUN = (LAUNCHES_FILE, METRICS_FILE, SUMMARY_FILE)
_WITHOUT_RUNS = {CHECKPOINTS_FOLDER, TENSORBOARD_FOLDER, "profile", "logs"}
_EVALUATION_FIELDS = {
    "metrics": Field(kinds=(dict,), required=True),
    "signatures": Field(kinds=(dict,)),
    "by_position": Field(kinds=(dict,), none=True),
}
_LAUNCH_FIELDS = {
    "started": Field(kinds=(str,)),
    "command_line": Field(kinds=(list,)),
    "git_commit": Field(kinds=(str,), none=True),
    "devices": Field(kinds=(str,)),
    "versions": Field(kinds=(dict,)),
    "checkpoints": Field(kinds=(dict,)),
}
_SUMMARY_FIELDS = {"steps": Field(kinds=(int,)), "parameters": Field(kinds=(int,))}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The files of one run, as far as they could be read.

    Attributes:
      path: the run directory.
      name: its path below the directory that the report was asked for.
      settings: by flat name, see `gkd.runs.flat_settings`.
      launches: one record per launch, the oldest first.
      metrics: rows of metrics.jsonl, in order.
      speed: rows of speed.jsonl, in order.
      samples: the last table of samples.jsonl, a dictionary of texts per row.
      summary: the run's result, empty until it is complete.
      evaluations: results of `python -m gkd evaluate`, by the name of the file.
      teacher: the teacher's own metrics.
      state: 'complete', 'running', 'stopped', or 'running or stopped' where its process is on
        another host and has shown no sign yet.
      problems: one line per file that could not be read.
    """

    path: pathlib.Path
    name: str
    settings: Mapping[str, FlatSetting]
    launches: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    speed: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, str]]
    summary: Mapping[str, Any]
    evaluations: Mapping[str, Mapping[str, Any]]
    teacher: Mapping[str, float]
    state: str
    problems: tuple[str, ...] = ()

    def series(self, name: str) -> dict[int, float | int]:
        """Returns the values of a metric of metrics.jsonl by step, e.g. of `evaluation/rouge2`."""
        found = {row["step"]: row[name] for row in self.metrics if name in row}
        return {int(step): found[step] for step in sorted(found) if _is_finite(found[step])}

    def last(self, name: str) -> float | int | None:
        """Returns the newest value of a metric of metrics.jsonl."""
        return next(reversed(self.series(name).values()), None)

    @property
    def step(self) -> int:
        """The last step of which anything is recorded."""
        return int(max((row["step"] for row in self.metrics), default=0))

    @property
    def train_steps(self) -> int | None:
        """Steps of the whole run."""
        value = self.setting("train_steps")
        return value if isinstance(value, int) else None

    @property
    def seed(self) -> Any:
        """PRNG seed of the run."""
        return self.setting("seed")

    @property
    def parameters(self) -> int | None:
        """Parameters of the student."""
        return self.summary.get("parameters")

    def setting(self, name: str) -> Any:
        """Returns a setting's value by its flat name; None where the run does not record it."""
        return self.settings[name].value if name in self.settings else None

    @functools.cached_property
    def _clock(self) -> tuple[list[int], list[float]]:
        """Steps, and the seconds of training until each of them."""
        seconds = {
            row["step"]: row["seconds_per_step"] for row in self.speed if "seconds_per_step" in row
        }
        steps, totals = [0], [0.0]
        for step in sorted(seconds):
            totals.append(totals[-1] + (step - steps[-1]) * seconds[step])
            steps.append(step)
        return steps, totals

    def seconds_at(self, step: int) -> float | None:
        """Estimates the seconds of training steps until a step, without compilation and evaluation.

        Args:
          step: number of steps done.

        Returns:
          The sum of the steps' median times; None where speed.jsonl does not reach so far.
        """
        steps, totals = self._clock
        if step > steps[-1]:
            return None
        return float(np.interp(step, steps, totals))


def find_runs(directories: Sequence[str | os.PathLike[str]]) -> tuple[list[RunRecord], list[str]]:
    """Reads every run in some folders.

    Args:
      directories: run directories, or folders with run directories at any depth.

    Returns:
      The runs in the order of their paths, and one line per folder or file that could not be read.
    """
    records, problems, known = [], [], set()
    for directory in map(pathlib.Path, directories):
        folders = list(_run_folders(directory))
        if not folders:
            what = "is no folder" if not directory.is_dir() else "holds no run"
            problems.append(f"{directory} {what}: left out")
        for folder in folders:
            if folder.resolve() in known:
                continue
            known.add(folder.resolve())
            relative = folder.relative_to(directory).as_posix()
            name = folder.resolve().name if relative == "." else relative
            record = read_run(folder, name)
            problems += record.problems
            if record.launches or record.metrics:
                records.append(record)
    return _with_distinct_names(records), problems


def _run_folders(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """The run directories at and below a folder, by name."""
    for path, files in folders_below(directory):
        if files & set(_OF_A_RUN):
            yield path


def folders_below(
    directory: str | os.PathLike[str],
) -> Iterator[tuple[pathlib.Path, set[str]]]:
    """Yields a folder and all folders below it but those of checkpoints, traces and logs.

    Args:
      directory: the folder; one that is absent yields nothing.

    Yields:
      (folder, names of its files), by name; through links too, but each folder once.
    """
    seen: set[str] = set()
    for path, folders, files in os.walk(directory, followlinks=True):
        place = os.path.realpath(path)
        folders[:] = [] if place in seen else sorted(set(folders) - _WITHOUT_RUNS)
        if place not in seen:
            seen.add(place)
            yield pathlib.Path(path), set(files)


def _with_distinct_names(records: list[RunRecord]) -> list[RunRecord]:
    """Names runs by their whole paths where two have the same name."""
    names = [record.name for record in records]
    return [
        record
        if names.count(record.name) == 1
        else dataclasses.replace(record, name=record.path.as_posix())
        for record in records
    ]


def read_run(path: pathlib.Path, name: str) -> RunRecord:
    """Reads one run directory; a file that is damaged counts as missing and is named.

    Args:
      path: the run directory.
      name: name of the run in the report.
    """
    problems: list[str] = []

    def read(reader, *arguments, default):
        try:
            return reader(*arguments)
        except FileNotFoundError:
            return default
        except Exception as error:  # a foreign file of the same name
            if as_user_error(error) is None and not isinstance(error, ValueError | TypeError):
                raise
            problems.append(f"{one_line(error)}: left out")
            return default

    launches = read(_launches, path, default=[])
    bindings = launches[-1].get("bindings", {}) if launches else {}
    settings = read(_settings, path, bindings, default={})
    summary = read(_fields, path / SUMMARY_FILE, _SUMMARY_FIELDS, default={})
    evaluations = {}
    for file in sorted(path.glob("evaluation-*.json")):
        found = read(_evaluation, file, default=None)
        if found is not None:
            evaluations[file.stem.removeprefix("evaluation-")] = found
    tables = read(_samples, path, default=[])
    steps = settings["train_steps"].value if "train_steps" in settings else None
    return RunRecord(
        path=path,
        name=name,
        settings=settings,
        launches=launches,
        metrics=read(read_metrics, path, default=[]),
        speed=read(_speed, path / SPEED_FILE, default=[]),
        samples=tables[-1]["rows"] if tables else [],
        summary=summary,
        evaluations=evaluations,
        teacher=read(_teacher, path / TEACHER_EVALUATION_FILE, default={}),
        state=_state(path, summary, steps),
        problems=tuple(problems),
    )


def _settings(path: pathlib.Path, bindings: Mapping[str, str]) -> dict[str, FlatSetting]:
    try:
        return flattened(parsed_bindings(bindings), "train")
    except UserError as error:
        raise InvalidFile(f"{path / LAUNCHES_FILE}: {one_line(error)}") from error


def _launches(path: pathlib.Path) -> list[dict[str, Any]]:
    launches = read_launches(path)
    for launch in launches:
        _check(launch, _LAUNCH_FIELDS, path / LAUNCHES_FILE)
    return launches


def _check(found: Mapping[str, Any], fields: Mapping[str, Field], where: Any) -> None:
    """Checks the fields that a report reads, of those that there are."""
    check_fields({name: found[name] for name in fields if name in found}, fields, str(where))


def _fields(file: pathlib.Path, fields: Mapping[str, Field]) -> dict[str, Any]:
    found = read_json(file, dict)
    _check(found, fields, file)
    return found


def _speed(file: pathlib.Path) -> list[dict[str, Any]]:
    rows = read_rows(file)
    for number, row in enumerate(rows, start=1):
        if not all(_is_number(value) for value in row.values()):
            raise InvalidFile(f"{file}:{number} holds something that is no number")
    return rows


def _is_finite(value: float | int) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _evaluation(file: pathlib.Path) -> dict[str, Any]:
    """Reads an evaluation; of its numbers those that are numbers."""
    found = _fields(file, _EVALUATION_FIELDS)
    metrics = {
        model: {decoding: _numbers_of(numbers) for decoding, numbers in by_decoding.items()}
        for model, by_decoding in found["metrics"].items()
        if isinstance(by_decoding, dict)
    }
    by_position = {
        curve: {
            name: values
            for name, values in curves.items()
            if isinstance(values, list) and all(_is_number(v) and _is_finite(v) for v in values)
        }
        for curve, curves in (found.get("by_position") or {}).items()
        if isinstance(curves, dict)
    }
    return {**found, "metrics": metrics, "by_position": by_position}


def _numbers_of(values: Any) -> dict[str, float | int]:
    items = values.items() if isinstance(values, dict) else ()
    return {name: value for name, value in items if _is_number(value) and _is_finite(value)}


def _samples(path: pathlib.Path) -> list[dict[str, Any]]:
    tables = read_samples(path)
    for table in tables:
        if not all(isinstance(row, dict) for row in table["rows"]):
            raise InvalidFile(f"{path / SAMPLES_FILE} holds a table whose rows are no objects")
    return tables


def _teacher(file: pathlib.Path) -> dict[str, float]:
    metrics = read_json(file, dict).get("metrics")
    if not isinstance(metrics, dict):
        raise InvalidFile(f"{file} holds no metrics")
    return {name: float(value) for name, value in metrics.items()}


def _state(path: pathlib.Path, summary: Mapping[str, Any], train_steps: int | None) -> str:
    if summary and summary.get("steps") == (train_steps or summary.get("steps")):
        return "complete"
    seen = Watch(run_prefix(path)).look().state
    return {"held": "running", "silent": "running or stopped"}.get(seen, "stopped")
