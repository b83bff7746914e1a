"""Charts of what is measured during training: scores, divergences, lengths and speed by step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gkd.metrics.descriptions import description_of
from gkd.metrics.intervals import mean_interval
from gkd.report.arms import Arm, Arms, teacher_of
from gkd.report.charts import Line, LineChart, StackedBars, stem_of

# Figures that follow the scores: file name, metric, label of the y axis, title.
_FOLLOWED = (
    ("on-policy-kl", "evaluation/on_policy_forward_kl", "forward KL (nats per token)",
     "KL(P‖Q) on the student's own samples"),
    ("reference-kl", "evaluation/reference_forward_kl", "forward KL (nats per token)",
     "KL(P‖Q) on the references"),
    ("output-length", "evaluation/output_length", "tokens", "Length of greedy outputs"),
    ("truncated", "evaluation/unfinished", "% of outputs", "Truncated greedy outputs"),
    ("entropy", "train/sample_entropy", "nats per token", "Entropy of training samples"),
    ("repetition", "train/repetition", "share of 4-grams", "Repetition in target sequences"),
)  # fmt: skip
_MOST_POINTS = 300  # of a line


def training_charts(arms: Arms, metrics: Sequence[str]) -> list[LineChart]:
    """Makes the charts for which the runs hold numbers.

    Args:
      arms: the arms.
      metrics: names of evaluation metrics, each drawn by step and by time.

    Returns:
      Charts with one line per arm: the mean over its runs, and the 95% interval where there are
      two or more.
    """
    charts = []
    for metric in metrics:
        name, title = f"evaluation/{metric}", metric.replace("_", " ")
        levels = teacher_levels(arms, metric)
        about = description_of(name) or ""
        charts.append(
            _chart(
                arms, f"{stem_of(metric)}-by-step", name, title, f"{title} by step", levels, about
            )
        )
        charts.append(
            _chart(
                arms, f"{stem_of(metric)}-by-time", name, title, f"{title} by training time",
                    levels,
                "Seconds of training steps, without compilation, evaluation and saving.", True,
            )
        )  # fmt: skip
    for stem, name, label, title in _FOLLOWED:
        about = description_of(name) or ""
        charts.append(_chart(arms, stem, name, label, title, {}, about))
    return [chart for chart in charts if chart is not None]


def teacher_levels(arms: Arms, metric: str) -> dict[str, float | int]:
    """Returns the score of each teacher as a horizontal line, where the runs measured it.

    Args:
      arms: the arms.
      metric: the metric's name.
    """
    found: dict[str, list[float]] = {}
    for arm in arms.arms:
        for run in arm.runs:
            if metric in run.teacher:
                found.setdefault(teacher_of(run), []).append(run.teacher[metric])
    return {
        "teacher" if len(found) == 1 else f"teacher {name}": statistics.fmean(values)
        for name, values in found.items()
    }


def _chart(arms, stem, name, label, title, levels, note, by_time=False) -> LineChart | None:
    lines = []
    for color, arm in enumerate(arms.arms):
        line = _mean_line(arm, name, color, by_time)
        if line is not None:
            lines.append(line)
    if not lines or all(len(line.x) < 2 for line in lines):
        return None
    x_label = "training time (s)" if by_time else "step"
    return LineChart(stem, title, x_label, label, lines, levels, note=note)


def _mean_line(arm: Arm, name: str, color: int, by_time: bool) -> Line | None:
    """The mean of an arm's runs at the steps that all of its runs with this metric have."""
    runs = [(run, run.series(name)) for run in arm.runs]
    runs = [(run, series) for run, series in runs if series]
    if name == "train/sample_entropy":  # 0 where nothing was sampled
        runs = [(run, series) for run, series in runs if any(series.values())]
    if not runs:
        return None
    steps = _thinned(sorted(set.intersection(*(set(series) for _, series in runs))))
    x: list[float] = []
    y: list[float] = []
    interval: list[float | None] = []
    for step in steps:
        times = [run.seconds_at(step) for run, _ in runs] if by_time else [float(step)]
        if any(time is None for time in times):
            continue
        mean = mean_interval([series[step] for _, series in runs])
        x.append(sum(times) / len(times))
        y.append(mean["mean"])
        interval.append(mean["interval"])
    label = arm.name if len(runs) == 1 else f"{arm.name} (n={len(runs)})"
    return Line(label, x, y, interval, color) if x else None


def _thinned(steps: list[int]) -> list[int]:
    """Evenly many of the steps, with the last, so that a long run's page stays small."""
    every = -(-len(steps) // _MOST_POINTS)
    return steps[::-1][:: max(1, every)][::-1]


def time_chart(arms: Arms) -> StackedBars | None:
    """Makes the chart of a step's parts, for runs that timed them (TIME_PARTS)."""
    labels, parts = [], {"sampling": [], "teacher": [], "update": []}
    for arm in arms.arms:
        found = [times for run in arm.runs if (times := part_seconds(run.speed)) is not None]
        if found:
            labels.append(arm.name)
            for part, lengths in parts.items():
                lengths.append(1000 * sum(times[part] for times in found) / len(found))
    if not labels:
        return None
    note = "Sampling and the teacher's pass by themselves; the rest of a step is the update."
    return StackedBars("step-time", "Time of a step", "milliseconds", labels, parts, note)


def part_seconds(speed: Sequence[dict]) -> dict[str, float] | None:
    """Returns the seconds of a step's parts.

    Args:
      speed: rows of speed.jsonl.

    Returns:
      The newest times of sampling, teacher and update; None where the run did not time them.
    """
    found = {}
    for row in speed:
        for part in ("sampling", "teacher", "update"):
            if f"{part}_seconds" in row:
                found[part] = row[f"{part}_seconds"]
    return {"teacher": 0.0, **found} if {"sampling", "update"} <= found.keys() else None
