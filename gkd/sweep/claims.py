"""Decides claims about a sweep by confidence intervals of differences that are paired by seed."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.errors import InvalidValue
from gkd.files.atomic_files import replace_file
from gkd.files.json_files import shown
from gkd.metrics.intervals import mean_interval, mean_text
from gkd.runs import tables
from gkd.sweep.table import numbers_of, warning_lines

HOLDS, FAILS, INCONCLUSIVE, INCOMPLETE = "holds", "does not hold", "inconclusive", "incomplete"
_KEYS = {"plus", "minus", "metric", "above", "below"}

Runs = Sequence[tuple[Mapping[str, str], Mapping[str, Any] | None]]


def decide(
    runs: Runs,
    claim: str,
    comparisons: Mapping[str, Any],
    at_least: int | None = None,
    average_over: str = "seed",
) -> dict[str, Any]:
    """Decides a claim.

    A comparison is the sum of a metric over the rows `plus` minus that over the rows `minus`, for
    each seed. It holds if the whole 95% interval of its mean (Student's t) is above `above` and
    below `below`, does not hold if the whole interval is on the other side of one of them, and is
    inconclusive otherwise.

    Args:
      runs: each run's options by axis, and its result as JSON (None while it is incomplete).
      claim: the claim in one sentence.
      comparisons: by name {"plus": [options, …], "minus": [options, …], "metric": name, "above":
        number, "below": number}; options choose a row by some of the axes, `minus` may be absent,
        and one of the bounds.
      at_least: number of comparisons that must hold; None is all.
      average_over: the axis of the seeds.

    Returns:
      {"claim", "verdict", "comparisons": {name: {"metric", "above", "below", "values", "mean",
      "interval", "seeds", "verdict"}}}; a comparison has the bounds that it was given.

    Raises:
      InvalidValue: a comparison is malformed, its options choose no row or several, or no run has
        its metric.

    Over two seeds `b` is ahead of `a` by 2 ± 0:

    >>> runs = [({"method": m, "seed": str(s)}, {"bleu": float(s + 2 * (m == "b"))})
    ...         for m in "ab" for s in (0, 1)]
    >>> ahead = {"plus": [{"method": "b"}], "minus": [{"method": "a"}], "metric": "bleu",
    ...          "above": 1.0}
    >>> decide(runs, "b is better", {"b − a": ahead})["verdict"]
    'holds'
    """
    decided = {}
    for name, comparison in comparisons.items():
        _check(name, comparison)
        values = _by_seed(runs, comparison, average_over, name)
        found = mean_interval(list(values.values()))
        complete = len(values) == len({labels.get(average_over) for labels, _ in runs})
        verdict = _verdict(found, comparison) if complete else INCOMPLETE
        given = {key: comparison[key] for key in ("metric", "above", "below") if key in comparison}
        decided[name] = {**given, **found, "seeds": list(values), "verdict": verdict}
    verdicts = [each["verdict"] for each in decided.values()]
    return {
        "claim": claim,
        "verdict": _of_all(verdicts, len(verdicts) if at_least is None else at_least),
        "comparisons": decided,
    }


def _check(name: str, comparison: Any) -> None:
    where = f"comparison {name} of the claim"
    if not isinstance(comparison, Mapping) or not {"plus", "metric"} <= set(comparison) <= _KEYS:
        raise InvalidValue(
            f"{where} is {shown(comparison)}: give plus, minus, metric, above, below"
        )
    for side in ("plus", "minus"):
        rows = comparison.get(side, [])
        if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
            raise InvalidValue(f"{where} has {side} {shown(rows)}: give a list of options by axis")
    bounds = [comparison[key] for key in ("above", "below") if key in comparison]
    if not bounds or not all(isinstance(bound, int | float) for bound in bounds):
        raise InvalidValue(f"{where} has the bounds {bounds}: give a number above, below, or both")


def _by_seed(
    runs: Runs, comparison: Mapping[str, Any], average_over: str, name: str
) -> dict[Any, float]:
    """The comparison's value for every seed whose runs are all complete."""
    signs = [(1, options) for options in comparison["plus"]]
    signs += [(-1, options) for options in comparison.get("minus", ())]
    totals: dict[Any, float] = {}
    for seed in dict.fromkeys(labels.get(average_over) for labels, _ in runs):
        total = 0.0
        for sign, options in signs:
            outcome = _outcome(runs, {**options, average_over: seed}, name)
            if outcome is None:
                break
            numbers = dict(numbers_of(outcome))
            if comparison["metric"] not in numbers:
                raise InvalidValue(
                    f"comparison {name} of the claim: no metric {comparison['metric']!r}; known: "
                    f"{', '.join(sorted(numbers))}"
                )
            total += sign * numbers[comparison["metric"]]
        else:
            totals[seed] = total
    return totals


def _outcome(runs: Runs, options: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The result of the only run with these options."""
    found = [
        outcome
        for labels, outcome in runs
        if all(labels.get(axis) == label for axis, label in options.items())
    ]
    if len(found) != 1:
        raise InvalidValue(
            f"comparison {name} of the claim: {len(found)} runs have {dict(options)}, which must "
            "choose one"
        )
    return found[0]


def _verdict(found: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    if found["interval"] is None:
        return INCONCLUSIVE  # a single seed
    low, high = found["mean"] - found["interval"], found["mean"] + found["interval"]
    above, below = comparison.get("above", -math.inf), comparison.get("below", math.inf)
    if low > above and high < below:
        return HOLDS
    return FAILS if high <= above or low >= below else INCONCLUSIVE


def _of_all(verdicts: Sequence[str], at_least: int) -> str:
    """The verdict of a claim of which so many comparisons must hold."""
    if INCOMPLETE in verdicts:
        return INCOMPLETE
    if verdicts.count(HOLDS) >= at_least:
        return HOLDS
    return FAILS if len(verdicts) - verdicts.count(FAILS) < at_least else INCONCLUSIVE


def write(directory: pathlib.Path, decided: Mapping[str, Any]) -> None:
    """Prints a decided claim, and writes it into the directory as verdict.md and verdict.json.

    Args:
      directory: the sweep's directory; created if missing.
      decided: the result of `decide`, perhaps with "warnings".
    """
    lines = []
    for name, each in decided["comparisons"].items():
        mean = mean_text(each, "+")
        lines.append([name, str(len(each["values"])), mean, each["verdict"]])
    table = tables.markdown(["comparison", "seeds", "mean ± 95%", "verdict"], lines)
    text = f"{decided['claim']}: **{decided['verdict']}**\n\n{table}\n{warning_lines(decided)}"
    directory.mkdir(parents=True, exist_ok=True)
    replace_file(directory / "verdict.md", text)
    replace_file(directory / "verdict.json", json.dumps(decided, indent=1) + "\n")
    print(text, end="")
