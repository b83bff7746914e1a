"""Means of repeated runs with confidence intervals by Student's t distribution, and their texts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """Computes the mean of independent values, and half the width of its 95% confidence interval.

    Args:
      values: one value per run, e.g. of each seed, or one difference per pair of runs.

    Returns:
      {"values", "mean", "interval"}: `mean` is None for no value and where one is not finite;
      `interval` is t·s/√n with n−1 degrees of freedom, None without a mean and for fewer than two
      values.

    Two values have a mean of 2 and s = √2, t(0.975, 1) = 12.71:

    >>> mean_interval([1.0, 3.0])["mean"], round(mean_interval([1.0, 3.0])["interval"], 2)
    (2.0, 12.71)
    """
    mean = statistics.fmean(values) if values and all(map(math.isfinite, values)) else None
    interval = None
    if mean is not None and len(values) > 1:
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
        interval = float(quantile) * statistics.stdev(values) / math.sqrt(len(values))
    return {"values": list(values), "mean": mean, "interval": interval}


def mean_text(found: Mapping[str, Any], sign: str = "") -> str:
    """Writes a result of `mean_interval`: `12.30 ± 0.45`.

    Args:
      found: the result.
      sign: '+' to write the sign of positive means too.

    Two digits of the interval are shown, and at least two decimals:

    >>> mean_text({"mean": 2.0, "interval": 0.5}, "+"), mean_text({"mean": None, "interval": None})
    ('+2.00 ± 0.50', '–')
    >>> mean_text({"mean": 0.0022, "interval": 0.00042})
    '0.00220 ± 0.00042'
    """
    mean, interval = found["mean"], found["interval"]
    if mean is None:
        return "–"
    if interval is None:
        return number_text(mean, sign)
    places = _places(interval or mean, 2)
    return f"{mean:{sign}.{places}f} ± {interval:.{places}f}"


def number_text(value: float, sign: str = "") -> str:
    """Writes a number with at least two decimals and three digits.

    >>> number_text(12.345), number_text(0.01364)
    ('12.35', '0.0136')
    """
    return f"{value:{sign}.{_places(value, 3)}f}"


def _places(value: float, digits: int) -> int:
    """Decimals that show so many digits of a number, two to eight."""
    if not value or not math.isfinite(value):
        return 2
    return min(8, max(2, digits - 1 - math.floor(math.log10(abs(value)))))
