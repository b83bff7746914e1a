"""What a sweep came to: means over seeds with Student's t intervals, as Markdown and JSON."""

from __future__ import annotations

import json
import math
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy import stats

CONFIDENCE = 0.95


def averages(
    runs: Sequence[tuple[Mapping[str, str], Mapping[str, Any] | None]],
    metrics: Sequence[str],
    over: str,
) -> dict[str, Any]:
    """Averages the metrics of complete runs over one axis.

    Args:
      runs: each run's options by axis, and the JSON it wrote (None while it is not complete).
      metrics: names in it; those of `evaluation` and of `metrics/student` stand without a prefix,
        others as `teacher/rouge2`.
      over: the axis to average over; without an axis of that name every run is a row.

    Returns:
      {"over", "confidence", "rows": [{"options", "complete", "runs", "metrics": {name: {"values",
      "mean", "interval"}}}]}; `interval` is half the width of the 95% interval of the mean,
      t·s/√n with n−1 degrees of freedom, None of fewer than two runs; `mean` is None of none.

    Raises:
      ValueError: no metric, or one that a complete run does not have.
    """
    if not metrics:
        raise ValueError("a table needs metrics: set METRICS, e.g. ['rouge2']")
    groups: dict[tuple[str, ...], list[tuple[Mapping[str, str], Any]]] = {}
    for labels, outcome in runs:
        key = tuple(label for axis, label in labels.items() if axis != over)
        groups.setdefault(key, []).append((labels, outcome))
    rows = []
    for group in groups.values():
        complete = [outcome for _, outcome in group if outcome is not None]
        options = {axis: label for axis, label in group[0][0].items() if axis != over}
        rows.append(
            {
                "options": options,
                "complete": len(complete),
                "runs": len(group),
                "metrics": {
                    name: _mean([_metric(outcome, name) for outcome in complete])
                    for name in metrics
                },
            }
        )
    return {"over": over, "confidence": CONFIDENCE, "rows": rows}


def markdown(table: Mapping[str, Any]) -> str:
    """The table as Markdown: one line a row, `mean ± interval`, runs as complete/all.

    Args:
      table: from `averages`.
    """
    first = table["rows"][0]
    head = [*first["options"], "runs", *first["metrics"]]
    lines = [head, ["---"] * len(head)]
    for row in table["rows"]:
        count = f"{row['complete']}/{row['runs']}"
        values = [_shown(value) for value in row["metrics"].values()]
        lines.append([*row["options"].values(), count, *values])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(directory: pathlib.Path, table: Mapping[str, Any]) -> None:
    """Prints the table, and writes it into the directory as table.md and table.json.

    Args:
      directory: of the sweep; made where it does not exist.
      table: from `averages`.
    """
    text = markdown(table)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("table.md", text), ("table.json", json.dumps(table, indent=1) + "\n")):
        temporary = directory / f"{name}.tmp"
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(directory / name)
    print(text, end="")


def _metric(outcome: Mapping[str, Any], name: str) -> float:
    known = dict(_numbers(outcome))
    if name not in known:
        raise ValueError(f"a run has no metric {name!r}; it has {', '.join(sorted(known))}")
    return float(known[name])


def _numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a run's or an evaluation's JSON; the student's metrics without a prefix."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            own = key in ("evaluation", "metrics") or (key == "student" and not path)
            yield from _numbers(value, path if own else f"{path}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path + key, value


def _mean(values: Sequence[float]) -> dict[str, Any]:
    mean = statistics.fmean(values) if values else None
    interval = None
    if len(values) > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        interval = float(quantile) * statistics.stdev(values) / math.sqrt(len(values))
    return {"values": list(values), "mean": mean, "interval": interval}


def _shown(value: Mapping[str, Any]) -> str:
    if value["mean"] is None:
        return "–"
    interval = "" if value["interval"] is None else f" ± {value['interval']:.2f}"
    return f"{value['mean']:.2f}{interval}"
