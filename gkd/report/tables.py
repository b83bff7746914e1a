"""The tables of a report: results of arms, evaluations, runs, speed, and how each run was made."""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.errors import InvalidValue
from gkd.metrics.intervals import mean_interval, mean_text, number_text
from gkd.report.arms import Arm, Arms, differing, shown_name, value_text
from gkd.report.measurements import measurements
from gkd.report.run_records import RunRecord

_MOST_COLUMNS = 12  # of metrics in the table of evaluations


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      caption: one sentence above it.
      head: titles of the columns.
      rows: a text per column; the first names the row.
      numbers: indices of the columns that hold numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """The command and the facts that repeat a run.

    Attributes:
      name: the run.
      command: its command line.
      facts: commit, seed, versions and so on, by name.
    """

    name: str
    command: str
    facts: Sequence[tuple[str, str]]


def find_baseline(arms: Arms, name: str | None) -> Arm | None:
    """Returns the arm that others are compared with.

    Args:
      arms: the arms.
      name: name of an arm; None is the first that samples nothing (λ = 0), else the first, and no
        arm where there is only one.

    Raises:
      InvalidValue: no arm has the name.
    """
    if name is None:
        if len(arms.arms) < 2:
            return None
        off_policy = [a for a in arms.arms if a.runs[0].setting("on_policy_fraction") == 0]
        return (off_policy or arms.arms)[0]
    for arm in arms.arms:
        if arm.name == name:
            return arm
    known = ", ".join(repr(arm.name) for arm in arms.arms)
    raise InvalidValue(f"--baseline is {name!r}, which no arm is called; the arms are {known}")


def results_table(arms: Arms, metric: str, baseline: Arm | None) -> Table:
    """Compares the arms by one metric.

    Args:
      arms: the arms.
      metric: name of an evaluation metric.
      baseline: the arm that the others are compared with.
    """
    options = list(dict.fromkeys(name for arm in arms.arms for name in arm.options))
    options = options if len(options) <= 6 else []  # else the table of runs has them
    head = ["arm", *options, "runs", "at the start", metric, "gain"]
    head += [f"minus {baseline.name}"] if baseline else []
    rows = []
    for arm in arms.arms:
        start = mean_interval(list(arm.by_seed(metric, first=True).values()))
        row = [arm.name, *(value_text(arm.options.get(name)) for name in options)]
        complete = sum(run.state == "complete" for run in arm.runs)
        row += [f"{complete}/{len(arm.runs)}", mean_text(start)]
        row += [mean_text(arm.result(metric)), mean_text(arm.gain(metric), "+")]
        if baseline:
            compared = arm.difference(baseline, metric) if arm is not baseline else None
            row.append(mean_text(compared, "+") if compared else "")
        rows.append(row)
    for run in arms.teachers:
        value = run.last(f"evaluation/{metric}")
        if value is not None:
            row = [f"teacher: {run.name}", *[""] * (len(head) - 1)]
            row[head.index(metric)] = number_text(value)
            rows.append(row)
    caption = (
        f"{metric}: the newest evaluation of each run, mean over seeds ± 95% interval (Student's "
        "t). "
        "Gain: over the same run's evaluation at step 0, before its first update."
    )
    if baseline:
        caption += f" Last column: paired by seed with {baseline.name}."
    return Table(caption, head, rows, range(len(options) + 1, len(head)))


def evaluations_table(arms: Arms) -> Table | None:
    """Lists the results of `python -m gkd evaluate` by arm, model and decoding."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    measured = measurements(arms)
    teachers = {_teacher(evaluation) for each in measured for _, evaluation in each.evaluations}
    for model in ("student", "teacher"):
        for measurement in measured:
            for arm, evaluation, decoding, numbers in measurement.decodings(model):
                name = arm.name
                if model == "teacher":
                    name = f"teacher {_teacher(evaluation)}" if len(teachers) > 1 else "teacher"
                row = name, measurement.label(decoding)
                if decoding == "references" or (model == "teacher" and row in found):
                    continue  # the same teacher in every run
                by_name = found.setdefault(row, {})
                for metric, value in numbers.items():
                    if "/" not in metric:
                        by_name.setdefault(metric, []).append(float(value))
    if not found:
        return None
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    names = names[:_MOST_COLUMNS]
    rows = [
        [arm, decoding, *(mean_text(mean_interval(numbers.get(name, []))) for name in names)]
        for (arm, decoding), numbers in found.items()
    ]
    return Table("Evaluations", ["arm", "decoding", *names], rows, range(2, 2 + len(names)))


def _teacher(evaluation: Mapping[str, Any]) -> str:
    return str((evaluation.get("teacher") or {}).get("step_folder", ""))


def runs_table(records: Sequence[RunRecord], metrics: Sequence[str]) -> Table:
    """Lists the runs: state, what differs in their settings, and their results.

    Args:
      records: the runs.
      metrics: names of evaluation metrics.
    """
    names = differing(records)
    titles = [shown_name(records, name) for name in names]
    repeated = {title for title in titles if titles.count(title) > 1}
    titles = [
        name if title in repeated else title for name, title in zip(names, titles, strict=True)
    ]
    rows = []
    for run in records:
        of = f" of {run.train_steps}" if run.train_steps else ""
        row = [run.name, run.state, f"{run.step}{of}", value_text(run.seed)]
        for metric in metrics:
            series = run.series(f"evaluation/{metric}")
            last = next(reversed(series.values()), None)
            row.append("–" if last is None else number_text(last))
        row += [value_text(run.setting(name)) for name in names]
        rows.append(row)
    head = ["run", "state", "step", "SEED", *metrics, *titles]
    return Table("Runs", head, rows, range(2, 4 + len(metrics)))


def speed_table(records: Sequence[RunRecord]) -> Table:
    """Lists step time, throughput, MFU, goodput and memory of the runs."""
    rows = []
    for run in records:
        median = _median(run, "seconds_per_step")
        tokens, mfu = _median(run, "tokens_per_second"), _median(run, "mfu")
        goodput = next((row["goodput"] for row in reversed(run.speed) if "goodput" in row), None)
        memory = [_peak(run, f"{where}memory_peak_bytes") for where in ("", "host_")]
        devices = run.launches[-1].get("devices", "") if run.launches else ""
        rows.append([
            run.name, str(devices), f"{run.parameters:,}" if run.parameters else "–",
            "–" if median is None else f"{1000 * median:.1f}",
            "–" if tokens is None else f"{tokens:,.0f}",
            "–" if mfu is None else f"{100 * mfu:.1f}%",
            "–" if goodput is None else f"{100 * goodput:.0f}%",
            *memory,
        ])  # fmt: skip
    head = ["run", "devices", "parameters", "ms per step", "tokens per second", "MFU", "goodput",
            "device memory", "host memory"]  # fmt: skip
    return Table("Speed and memory", head, rows, range(2, len(head)))


def _peak(run: RunRecord, name: str) -> str:
    peak = max((row[name] for row in run.speed if isinstance(row.get(name), int)), default=None)
    return "–" if peak is None else f"{peak / 2**30:.2f} GiB"


def _median(run: RunRecord, name: str) -> float | None:
    values = [row[name] for row in run.speed if isinstance(row.get(name), int | float)]
    return statistics.median(values) if values else None


def reproduction(run: RunRecord) -> Reproduction:
    """Returns the newest launch's command line, commit, seed, versions and checkpoints."""
    launch = run.launches[-1] if run.launches else {}
    words = [str(word) for word in launch.get("command_line", [])]
    if words and words[0].endswith(("gkd", "gkd/__main__.py")):
        words = ["python", "-m", "gkd", *words[1:]]
    commit = launch.get("git_commit") or "unknown"
    changed = " with uncommitted changes" if launch.get("git_dirty") else ""
    facts = [("folder", run.path.as_posix()), ("commit", f"{commit}{changed}")]
    facts += [("seed", value_text(run.seed)), ("started", str(launch.get("started", "")))]
    facts += [("launches", str(len(run.launches))), ("devices", str(launch.get("devices", "")))]
    versions = launch.get("versions")
    if isinstance(versions, Mapping):
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        facts.append(("versions", listed))
    checkpoints = launch.get("checkpoints")
    if isinstance(checkpoints, Mapping):
        facts += [(f"{role} read from", str(path)) for role, path in checkpoints.items()]
    return Reproduction(run.name, shlex.join(words) or "not recorded", facts)


def signatures(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Collects the signatures of all metrics in the runs' evaluations."""
    found: dict[str, dict[str, None]] = {}
    for run in records:
        for evaluation in run.evaluations.values():
            for name, text in (evaluation.get("signatures") or {}).items():
                found.setdefault(name, {})[str(text)] = None
    return [(name, "; ".join(texts)) for name, texts in found.items()]
