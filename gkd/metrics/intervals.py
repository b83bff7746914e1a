"""Means of repeated runs with confidence intervals by Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
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
