"""Means of a run's step metrics since the last logged row; a checkpoint carries their sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gkd.files.json_files import Field, check_value

# Counters that the training state carries: their newest value is logged.
COUNTERS = ("train/skipped", "train/skipped_in_a_row")
_SUMS = Field(kinds=(list,), least=3, most=3)
_NUMBER = Field(kinds=(float,))


def steps_updated(number: int, metrics: Mapping[str, Any], updates: int = 1) -> int:
    """Returns how many steps the optimizer has counted when it takes this one.

    It counts no update that was skipped, so that its learning rate is that of an earlier step.

    Args:
      number: this step, from 1.
      metrics: its `skipped` and `skipped_in_a_row`, with their weights.
      updates: updates of a step.

    Of five steps, the second was skipped:

    >>> steps_updated(5, {"skipped": (1, 1.0), "skipped_in_a_row": (0, 1.0)})
    3
    """
    skipped, streak = (int(metrics[name][0]) for name in ("skipped", "skipped_in_a_row"))
    return ((number - 1) * updates - skipped + min(streak, updates)) // updates


class StepMeans:
    """Adds up (sum, weight) pairs step by step; a row holds Σ sum / Σ weight.

    The pairs are the host's copies that the loop reads anyway, one step behind the device, and are
    added in float64: no further synchronisation, and the same bits after a resume.

    Example:
      >>> means = StepMeans()
      >>> means.add({"loss": (8.0, 2.0), "on_policy": (2.0, 2.0)})
      >>> means.add({"loss": (1.0, 1.0), "on_policy": (0.0, 2.0)})
      >>> means.take()
      {'loss': 3.0, 'on_policy': 0.5}
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # name -> sum, weight, steps left out

    def add(self, pairs: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds one step.

        A sum that is not finite (a skipped update's loss) is left out: the mean is that of the
        other steps, and `skipped` counts it.

        Args:
          pairs: metric to its (sum, weight), as a step returns them.
        """
        for name, (total, weight) in pairs.items():
            total, weight = float(total), float(weight)
            sums = self._sums.setdefault(name, [0.0, 0.0, 0.0])
            if name in COUNTERS:
                sums[:] = total, weight, 0.0
            elif math.isfinite(total) and math.isfinite(weight):
                sums[0] += total
                sums[1] += weight
            else:
                sums[2] += 1.0

    def take(self) -> dict[str, float]:
        """Returns the means and begins anew.

        Returns:
          Metric to mean: 0 where nothing had a weight, NaN where no step was finite.
        """
        means = {}
        for name, (total, weight, left_out) in self._sums.items():
            means[name] = math.nan if left_out and not weight else total / max(weight, 1e-30)
        self._sums = {}
        return means

    def sampled_length(self) -> float:
        """Tokens that the student sampled per row, over all rows: 0 where it sampled none."""
        tokens = self._sums.get("train/sample_entropy", (0.0, 0.0))[1]
        rows = self._sums.get("train/target_length", (0.0, 0.0))[1]
        return tokens / rows if rows else 0.0

    def state(self) -> dict[str, list[float]]:
        """The sums since the last row, as JSON."""
        return {name: list(sums) for name, sums in self._sums.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from saved sums.

        Args:
          state: a dictionary from `state`; empty for a checkpoint of an earlier version.

        Raises:
          ValueError: it holds something else.
        """
        for name, sums in state.items():
            where = f"the checkpoint's sums of the metric {name}"
            check_value(sums, _SUMS, where)
            for number in sums:
                check_value(number, _NUMBER, where)
        self._sums = {name: [float(number) for number in sums] for name, sums in state.items()}
