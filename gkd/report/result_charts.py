"""Charts of results: score by a setting, λ × divergence, diversity, KL by position, samples."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.metrics.intervals import mean_interval
from gkd.report.arms import Arm, Arms, value_text
from gkd.report.charts import Chart, HeatMap, Line, LineChart, stem_of
from gkd.report.measurements import measurements
from gkd.report.training_charts import teacher_levels

PARAMETERS = "parameters of the student"
_OVER_TEN = 10  # values that span more than this factor are drawn on a logarithmic axis
_OF_SEVERAL = re.compile(r"(pass|maj)@(\d+)")


def result_charts(arms: Arms, metrics: Sequence[str]) -> list[Chart]:
    """Makes the charts for which the runs differ in the right settings or hold the right results.

    Args:
      arms: the arms.
      metrics: names of evaluation metrics.
    """
    charts: list[Chart | None] = []
    for metric in metrics:
        charts += [_by_setting(arms, metric, name) for name in _numeric_options(arms)]
        charts.append(_gains(arms, metric))
        charts.append(_diversity(arms, metric))
    charts += [_by_position(arms, name) for name in ("forward_kl", "reverse_kl")]
    charts += _of_several_samples(arms)
    return [chart for chart in charts if chart is not None]


def _options(arm: Arm) -> dict[str, Any]:
    """An arm's options, and the size of its student."""
    size = arm.runs[0].parameters
    return {**arm.options, **({PARAMETERS: size} if size else {})}


def _numeric_options(arms: Arms) -> list[str]:
    """Options with three or more numbers as values, two for sizes."""
    found = []
    for name in dict.fromkeys(key for arm in arms.arms for key in _options(arm)):
        values = [_options(arm).get(name) for arm in arms.arms]
        is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if is_number and len(set(values)) >= (2 if name == PARAMETERS else 3):
            found.append(name)
    sizes = {"emb_dim", "head_dim", "mlp_dim", "num_heads"}  # of which the parameters follow
    return [name for name in found if PARAMETERS not in found or name not in sizes]


def _by_setting(arms: Arms, metric: str, name: str) -> LineChart | None:
    """Score against one option; a line for each choice of the others."""
    series: dict[str, list[Arm]] = {}
    for arm in arms.arms:
        if arm.by_seed(metric):
            series.setdefault(_other_options(arms, arm, name), []).append(arm)
    lines = []
    for color, (label, members) in enumerate(series.items()):
        members.sort(key=lambda arm: _options(arm)[name])
        results = [arm.result(metric) for arm in members]
        x = [float(_options(arm)[name]) for arm in members]
        y, intervals = zip(*((r["mean"], r["interval"]) for r in results), strict=True)
        lines.append(Line(label or metric, x, y, intervals, color))
    if not lines or max(len(line.x) for line in lines) < 2:
        return None
    values = [x for line in lines for x in line.x]
    stem = stem_of(name).lower()
    return LineChart(
        f"{stem_of(metric)}-by-{stem}", f"{metric.replace('_', ' ')} by {name}", name,
        metric.replace("_", " "), lines, teacher_levels(arms, metric),
        log_x=min(values) > 0 and max(values) > _OVER_TEN * min(values),
        note="The newest evaluation of each run; intervals of 95% over seeds.",
    )  # fmt: skip


def _other_options(arms: Arms, arm: Arm, name: str) -> str:
    """The options of an arm besides one, and besides those that follow from it."""
    texts = []
    for other, value in arm.options.items():
        by_value: dict[Any, set[str]] = {}
        for each in arms.arms:
            key = _options(each).get(name)
            by_value.setdefault(key, set()).add(value_text(each.options.get(other)))
        if other != name and max(map(len, by_value.values())) > 1:
            texts.append(f"{other} {value_text(value)}")
    return ", ".join(texts)


def _gains(arms: Arms, metric: str) -> HeatMap | None:
    """The gain over the SFT initialisation, by λ and divergence."""
    cells: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms.arms:
        if arm.gain(metric)["mean"] is not None:
            beta = arm.runs[0].setting("beta")
            divergence = value_text(arm.runs[0].setting("divergence"))
            label = divergence if beta is None else f"{divergence}\nβ = {beta}"
            fraction = value_text(arm.runs[0].setting("on_policy_fraction"))
            cells.setdefault((fraction, label), []).append(arm)
    rows = sorted({fraction for fraction, _ in cells}, key=_sort_key, reverse=True)
    columns = list(dict.fromkeys(label for _, label in cells))
    if len(rows) < 2 or len(columns) < 2 or max(map(len, cells.values())) > 1:
        return None
    values = [
        [
            cells[row, column][0].gain(metric)["mean"] if (row, column) in cells else None
            for column in columns
        ]
        for row in rows
    ]
    return HeatMap(
        f"{stem_of(metric)}-gain", f"Gain in {metric.replace('_', ' ')}", "divergence", "λ",
        columns, rows, values,
        note="The newest evaluation minus that of the student before the run; mean over seeds.",
    )  # fmt: skip


def _sort_key(text: str) -> tuple[bool, float, str]:
    """Orders numbers by their size, after schedules by their names."""
    try:
        return (True, float(text), text)
    except ValueError:
        return (False, 0.0, text)


def _diversity(arms: Arms, metric: str) -> LineChart | None:
    """Quality against Self-BLEU: a line for each temperature, a point for each arm."""
    found: dict[tuple[float, str], dict[str, list[Mapping[str, float]]]] = {}
    for measurement in measurements(arms):
        for arm, _, decoding, numbers in measurement.decodings():
            if decoding.startswith("temperature_") and {metric, "self_bleu"} <= numbers.keys():
                temperature = float(decoding.removeprefix("temperature_"))
                line = temperature, measurement.label(f"temperature {temperature:g}")
                found.setdefault(line, {}).setdefault(arm.name, []).append(numbers)
    if not found:
        return None
    lines = []
    for color, ((_, label), by_arm) in enumerate(sorted(found.items())):
        rows = [
            (*(statistics.fmean(n[key] for n in several) for key in ("self_bleu", metric)), name)
            for name, several in by_arm.items()
        ]
        x, y, texts = zip(*sorted(rows), strict=True)
        lines.append(Line(label, x, y, (), color, texts=texts))
    return LineChart(
        f"{stem_of(metric)}-diversity", f"{metric.replace('_', ' ')} against Self-BLEU",
        "Self-BLEU (100: all samples of a prompt are equal)", metric.replace("_", " "), lines,
        note="One line per temperature, one point per arm; further left is more diverse.",
    )  # fmt: skip


def _by_position(arms: Arms, name: str) -> LineChart | None:
    """KL by token position on the student's own samples and on the references."""
    found: dict[tuple[int, str, bool], list[Sequence[float]]] = {}
    with_curves = [
        measurement
        for measurement in measurements(arms)
        if any(evaluation["by_position"] for _, evaluation in measurement.evaluations)
    ]
    for measurement in with_curves:
        if len(with_curves) == 1:
            measurement = dataclasses.replace(measurement, name="")
        for arm, evaluation in measurement.evaluations:
            for curve, dashed in (("free_running", False), ("teacher_forced", True)):
                values = evaluation["by_position"].get(curve, {}).get(name)
                if values:
                    label = f"{arm.name}, {measurement.label(curve)}"
                    line = arms.arms.index(arm), label, dashed
                    found.setdefault(line, []).append(values)
    lines = []
    for (color, label, dashed), several in found.items():
        length = min(map(len, several))
        means = [mean_interval([each[i] for each in several]) for i in range(length)]
        y, intervals = zip(*((m["mean"], m["interval"]) for m in means), strict=True)
        lines.append(Line(label, list(range(1, length + 1)), y, intervals, color, dashed))
    if not lines:
        return None
    return LineChart(
        f"{name.replace('_', '-')}-by-position", f"{name.replace('_kl', ' KL')} by position",
        "token position", "nats", lines,
        note="On the student's own samples (free running) and on the references (teacher forced): "
        "the difference shows exposure bias.",
    )  # fmt: skip


def _of_several_samples(arms: Arms) -> list[LineChart]:
    """pass@k and majority vote by the number of samples; a chart for each way of decoding."""
    found: dict[tuple[str, str], dict[tuple[int, str], dict[int, list[float]]]] = {}
    for measurement in measurements(arms):
        for arm, _, decoding, numbers in measurement.decodings():
            for name, value in numbers.items():
                match = _OF_SEVERAL.fullmatch(name)
                if match:
                    line = arms.arms.index(arm), match[1]
                    chart = measurement.label(decoding), f"{measurement.name}-{decoding}".strip("-")
                    by_line = found.setdefault(chart, {}).setdefault(line, {})
                    by_line.setdefault(int(match[2]), []).append(value)
    charts = []
    for (label, stem), by_line in found.items():
        lines = []
        for (color, kind), by_k in by_line.items():
            means = [mean_interval(by_k[k]) for k in sorted(by_k)]
            y, intervals = zip(*((m["mean"], m["interval"]) for m in means), strict=True)
            name, dashed = f"{arms.arms[color].name}, {kind}@k", kind == "maj"
            lines.append(Line(name, sorted(by_k), y, intervals, color, dashed))
        charts.append(
            LineChart(
                f"samples-{stem_of(stem)}", f"Several samples, {label}",
                "k, samples per prompt", "% of prompts", lines,
                note="pass@k: one of k samples is right; maj@k: their most frequent answer is.",
            )
        )  # fmt: skip
    return charts
