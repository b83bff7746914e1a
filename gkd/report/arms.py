"""Groups runs into arms, which differ in settings, and averages their metrics over seeds."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.configuration.gin_files import Reference
from gkd.metrics.intervals import mean_interval
from gkd.report.run_records import RunRecord
from gkd.runs.setting_changes import WITHOUT_EFFECT

# Settings that tell runs of one arm apart.
_OF_A_RUN = WITHOUT_EFFECT | {"seed", "evaluate_every", "best_metric", "best_mode"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but their seeds.

    Attributes:
      name: text that tells it from the other arms.
      options: values of the settings in which arms differ, by the name that a user sets.
      runs: the runs, in the order of their paths.
    """

    name: str
    options: Mapping[str, Any]
    runs: tuple[RunRecord, ...]

    def by_seed(self, metric: str, first: bool = False) -> dict[Any, float | int]:
        """Returns the newest value of an evaluation metric by seed: the mean over its runs.

        Args:
          metric: name after `evaluation/`.
          first: return the value at step 0 instead: of the student before this run.
        """
        found: dict[Any, list[float | int]] = {}
        for run in self.runs:
            series = run.series(f"evaluation/{metric}")
            value = series.get(0) if first else next(reversed(series.values()), None)
            if value is not None:
                found.setdefault(run.seed, []).append(value)
        return {seed: statistics.mean(values) for seed, values in found.items()}

    def result(self, metric: str) -> dict[str, Any]:
        """Averages the newest values over seeds, see `mean_interval`."""
        return mean_interval(list(self.by_seed(metric).values()))

    def gain(self, metric: str) -> dict[str, Any]:
        """Averages newest minus first value: the gain over the student that the run began with."""
        return _difference(self.by_seed(metric), self.by_seed(metric, first=True))

    def difference(self, other: Arm, metric: str) -> dict[str, Any]:
        """Averages this arm's minus another's value over the seeds that both have."""
        return _difference(self.by_seed(metric), other.by_seed(metric))


@dataclasses.dataclass(frozen=True)
class Arms:
    """The arms of a report, and the runs that they build on.

    Attributes:
      arms: in the order of their first runs.
      teachers: runs that others have as their teacher, and that have none themselves.
      starts: runs that others start from.
    """

    arms: tuple[Arm, ...]
    teachers: tuple[RunRecord, ...]
    starts: tuple[RunRecord, ...]


def _difference(after: Mapping[Any, float], before: Mapping[Any, float]) -> dict[str, Any]:
    return mean_interval([after[seed] - before[seed] for seed in after if seed in before])


def group_runs(records: Sequence[RunRecord]) -> Arms:
    """Groups runs by their settings.

    Runs that others read as TEACHER or STUDENT are set apart, where any run remains.

    Args:
      records: the runs.
    """
    teachers = [run for run in records if _is_read(run, "TEACHER", records)]
    starts = [run for run in records if _is_read(run, "STUDENT", records) and run not in teachers]
    rest = [run for run in records if run not in teachers and run not in starts]
    if not rest:
        return Arms(_arms(records), (), ())
    return Arms(_arms(rest), tuple(teachers), tuple(starts))


def _is_read(run: RunRecord, role: str, records: Sequence[RunRecord]) -> bool:
    """True if another run reads this run's checkpoint, by its path or as its settings name it."""
    own = {run.path.resolve().as_posix(), _normal(run.setting("model_dir"))} - {None}
    for other in records:
        if other is run:
            continue
        read = (other.launches[-1].get("checkpoints") or {}).get(role) if other.launches else None
        if _normal(other.setting(role.lower())) in own:
            return True
        if isinstance(read, str) and own & {path.as_posix() for path in _with_parents(read)}:
            return True
    return False


def _normal(path: Any) -> str | None:
    return pathlib.PurePath(path).as_posix() if isinstance(path, str) else None


def _with_parents(path: str) -> list[pathlib.PurePath]:
    return [pathlib.PurePath(path), *pathlib.PurePath(path).parents]


def teacher_of(run: RunRecord) -> str:
    """Names a run's teacher by its path, without the seed; a self-teacher by the student's."""
    name = "teacher" if run.setting("teacher") is not None else "student"
    return _without_seed(run, name)


def value_text(value: Any) -> str:
    """Writes a setting's value as a user reads it.

    >>> value_text(0.5), value_text(None), value_text((0.3, 1.0))
    ('0.5', 'None', '(0.3, 1.0)')
    """
    if isinstance(value, Reference):
        return value.selector.rpartition("/")[2].rpartition(".")[2]
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"({', '.join(map(value_text, value))})"
    return str(value)


def differing(records: Sequence[RunRecord]) -> list[str]:
    """Lists the settings in which runs differ, other than seeds and what follows from them.

    Args:
      records: runs that record their settings.

    Returns:
      Flat names, sorted by the name that a user sets.
    """
    names = {name for run in records for name in run.settings}
    found = []
    for name in names:
        if name.rpartition(".")[2] in _OF_A_RUN:
            continue
        values = {_without_seed(run, name) for run in records}
        if len(values) > 1:
            found.append(name)
    return sorted(found, key=lambda name: (shown_name(records, name), name))


def shown_name(records: Sequence[RunRecord], name: str) -> str:
    """Returns the name that a user sets: a macro's, where one sets it.

    Args:
      records: the runs.
      name: flat name of the setting.
    """
    return next(run.settings[name].shown for run in records if name in run.settings)


def _without_seed(run: RunRecord, name: str) -> str:
    """The text of a setting; in a path the run's own seed is a star."""
    text = value_text(run.setting(name))
    if "/" in text and run.seed is not None:
        text = re.sub(rf"(?<=/)((?:seed[_=-]?)?){run.seed}(?=/|$)", r"\1*", text)
    return text


def _arms(records: Sequence[RunRecord]) -> tuple[Arm, ...]:
    names = differing(records)
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for run in records:
        own = () if run.settings else (run.path.as_posix(),)  # nothing tells which runs are alike
        key = (*(_without_seed(run, name) for name in names), *own)
        groups.setdefault(key, []).append(run)
    options = [
        {shown_name(records, name): _shared_value(runs, name) for name in names}
        for runs in groups.values()
    ]
    titles = _names(list(groups.values()), options)
    return tuple(
        Arm(title, option, tuple(runs))
        for title, option, runs in zip(titles, options, groups.values(), strict=True)
    )


def _shared_value(runs: list[RunRecord], name: str) -> Any:
    """An arm's value of a setting; in a path, the seed of several runs is a star."""
    value = runs[0].setting(name)
    return _without_seed(runs[0], name) if isinstance(value, str) and runs[1:] else value


def _names(groups: list[list[RunRecord]], options: list[dict[str, Any]]) -> list[str]:
    """Names arms by the parts of their paths that all their runs share, else by their options."""
    if len(groups) == 1:
        return [groups[0][0].name if len(groups[0]) == 1 else "all runs"]
    shared = []
    for runs in groups:
        parts = [pathlib.PurePath(run.name).parts for run in runs]
        shared.append([column[0] for column in zip(*parts, strict=False) if len(set(column)) == 1])
    while all(shared) and len({parts[0] for parts in shared}) == 1:
        shared = [parts[1:] for parts in shared]
    names = ["/".join(parts) for parts in shared]
    if all(names) and len(set(names)) == len(names):
        return names
    return [
        ", ".join(f"{name} {value_text(value)}" for name, value in option.items())
        for option in options
    ]
