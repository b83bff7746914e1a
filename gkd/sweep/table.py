"""The results of a sweep: means over seeds with Student's t intervals, as Markdown and JSON."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidValue
from gkd.files.atomic_files import replace_file
from gkd.metrics.intervals import CONFIDENCE, mean_interval, mean_text
from gkd.runs import tables

# left out of the names of metrics
_UNNAMED = ("evaluation", "metrics", "student", "greedy", "divergences")


def averages(
    runs: Sequence[tuple[Mapping[str, str], Mapping[str, Any] | None]],
    metrics: Sequence[str],
    average_over: str,
    baseline: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Averages the metrics of complete runs over one axis.

    Args:
      runs: each run's options by axis, and its result as JSON (None while it is incomplete).
      metrics: names of metrics in the results: `rouge2` (the student's greedy completions),
        `temperature_0.5/rouge2`, `teacher/rouge2`, `on_policy_forward_kl`.
      average_over: the axis to average over; without an axis of that name every run is a row.
      baseline: options, by axis, that turn a row into the one that it is compared with, e.g.
        {"method": "sft"}; None compares no rows.

    Returns:
      {"average_over", "confidence", "rows": [{"options", "complete", "runs", "metrics": {name:
      {"values", "mean", "interval"}}}]}. `interval` is half the width of the 95% confidence
      interval of the mean, t·s/√n with n−1 degrees of freedom, and None for fewer than two runs;
      `mean` is None for no run, and where a complete run lacks the metric. With a baseline, each
      row also has "differences", of the same form: its runs minus the baseline's of the same option
      of `average_over` (a paired comparison).

    Raises:
      ValueError: no metric is given, no complete run has one of them, or no row has the baseline's
        options.

    Two seeds have a mean of 2 and s = √2, t(0.975, 1) = 12.71:

    >>> runs = [({"seed": "0"}, {"bleu": 1.0}), ({"seed": "1"}, {"bleu": 3.0})]
    >>> row = averages(runs, ["bleu"], "seed")["rows"][0]["metrics"]["bleu"]
    >>> row["mean"], round(row["interval"], 2)
    (2.0, 12.71)
    """
    if not metrics:
        raise InvalidValue("a table needs metrics: set METRICS, e.g. ['rouge2']")
    groups: dict[tuple[tuple[str, str], ...], list[tuple[str | None, Any]]] = {}
    for labels, outcome in runs:
        options = {axis: label for axis, label in labels.items() if axis != average_over}
        numbers = None if outcome is None else dict(numbers_of(outcome))
        groups.setdefault(tuple(options.items()), []).append((labels.get(average_over), numbers))
    rows, known = [], set()
    for options, group in groups.items():
        complete = [numbers for _, numbers in group if numbers is not None]
        known.update(*complete)
        row = {
            "options": dict(options),
            "complete": len(complete),
            "runs": len(group),
            "metrics": {name: mean_interval(_values(complete, name)) for name in metrics},
        }
        if baseline:
            other = groups.get(tuple({**row["options"], **baseline}.items()))
            if other is None:
                raise InvalidValue(f"BASELINE is {dict(baseline)}, which no row of the table has")
            pairs = _pairs(group, other)
            row["differences"] = {
                name: mean_interval(_differences(pairs, name)) for name in metrics
            }
        rows.append(row)
    if known and (unknown := [name for name in metrics if name not in known]):
        raise InvalidValue(
            f"no run has the metric {unknown[0]!r}; known: {', '.join(sorted(known))}"
        )
    return {"average_over": average_over, "confidence": CONFIDENCE, "rows": rows}


def markdown(table: Mapping[str, Any]) -> str:
    """Renders the table as Markdown: `mean ± interval`, and runs as complete/all.

    With a baseline each metric has a second column, the mean of the differences from it.

    Args:
      table: the result of `averages`, perhaps with "warnings", which follow it.
    """
    first = table["rows"][0]
    paired = "differences" in first
    head = [*first["options"], "runs"]
    for name in first["metrics"]:
        head += [name, f"{name}: difference"] if paired else [name]
    lines = []
    for row in table["rows"]:
        line = [*row["options"].values(), f"{row['complete']}/{row['runs']}"]
        for name, value in row["metrics"].items():
            line.append(mean_text(value))
            if paired:
                line.append(mean_text(row["differences"][name], "+"))
        lines.append(line)
    return tables.markdown(head, lines) + "\n" + warning_lines(table)


def warning_lines(result: Mapping[str, Any]) -> str:
    """Renders the "warnings" of a table or a verdict as paragraphs of Markdown.

    >>> warning_lines({"warnings": ["a", "b"]})
    '\\nWarning: a\\n\\nWarning: b\\n'
    """
    return "".join(f"\nWarning: {text}\n" for text in result.get("warnings", ()))


def write(directory: pathlib.Path, table: Mapping[str, Any]) -> None:
    """Prints the table, and writes it into the directory as table.md and table.json.

    Args:
      directory: the sweep's directory; created if missing.
      table: the result of `averages`, perhaps with "warnings".
    """
    text = markdown(table)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("table.md", text), ("table.json", json.dumps(table, indent=1) + "\n")):
        replace_file(directory / name, content)
    print(text, end="")


def _values(outcomes: Sequence[dict[str, float]], name: str) -> list[float]:
    """The metric's value in every run of a row; empty if a run lacks it: no mean is of some."""
    values = [numbers[name] for numbers in outcomes if name in numbers]
    return values if len(values) == len(outcomes) else []


def _pairs(group: Any, other: Any) -> list[tuple[dict[str, float], dict[str, float]]]:
    """The complete runs of two rows that share their option of the axis averaged over."""
    there = dict(other)
    return [(here, there[label]) for label, here in group if here and there.get(label)]


def _differences(pairs: Any, name: str) -> list[float]:
    return [here[name] - there[name] for here, there in pairs if name in here and name in there]


def numbers_of(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yields all numbers in the JSON of a run or an evaluation, with their names.

    Args:
      values: the JSON.
      path: beginning of their names.

    Yields:
      (name, number): the name is its path without the words evaluation, metrics, student, greedy,
        divergences.
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers_of(value, path if key in _UNNAMED else f"{path}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path + key, float(value)
