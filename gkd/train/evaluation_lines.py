"""Renders the progress of a run for the terminal: evaluations, the best so far, and its files."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.checkpoints.folders import better_or_equal

DIVERGENCE = "on_policy_forward_kl"  # the one divergence in a line; the log has all of them
_IN_THE_LOG_ONLY = ("output_length", "unfinished")
_DIVERGENCES = ("on_policy_", "reference_")


@dataclasses.dataclass
class Best:
    """The best evaluation so far, by one metric.

    Attributes:
      metric: name of the metric; None if the run has none.
      mode: 'max' if larger is better, 'min' if smaller is.
      value, step: the best value and its step, the newest of equals; None before an evaluation.
    """

    metric: str | None
    mode: str
    value: float | None = None
    step: int | None = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Compares an evaluation with the best one.

        Args:
          step: step of the evaluation.
          values: metrics by name.
        """
        if self.metric is None or self.metric not in values:
            return
        value = values[self.metric]
        if not math.isfinite(value):
            return
        if self.value is None or better_or_equal(value, self.value, self.mode):
            self.value, self.step = value, step

    def add_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Compares the evaluations of earlier launches with the best one.

        Args:
          rows: rows of metrics.jsonl.
        """
        name = f"evaluation/{self.metric}"
        for row in rows:
            if name in row:
                self.add(row["step"], {self.metric: row[name]})

    def __str__(self) -> str:
        if self.value is None:
            return ""
        return f"best {self.metric} {self.value:.4g} at step {self.step}"


def evaluation_line(title: str, values: Mapping[str, float], best: Best | None = None) -> str:
    """Renders an evaluation as one line: the task's metrics, one divergence, the best so far.

    Args:
      title: beginning of the line: 'step 100', 'teacher'.
      values: metrics by name; those of a task's groups ('group/metric'), facts about lengths and
        the other divergences are left to the log.
      best: the best evaluation so far.

    >>> values = {"bleu": 13.2, "output_length": 21.5, "unfinished": 0.0}
    >>> values |= {"on_policy_forward_kl": 0.654, "reference_forward_kl": 0.7}
    >>> evaluation_line("step 100", values, Best("bleu", "max", 13.8, 50))
    'step 100: bleu 13.2, forward KL 0.654; best bleu 13.8 at step 50'
    """
    shown = [
        f"{name} {value:.4g}"
        for name, value in values.items()
        if "/" not in name and name not in _IN_THE_LOG_ONLY and not name.startswith(_DIVERGENCES)
    ]
    if DIVERGENCE in values:
        shown.append(f"forward KL {values[DIVERGENCE]:.4g}")
    return "; ".join(filter(None, [f"{title}: {', '.join(shown)}", str(best or "")]))


def start_line(directory: pathlib.Path, step: int, total: int) -> str:
    """Renders the first line of a launch: the steps to run, and the files to look at.

    Args:
      directory: path of the run directory.
      step: the step that the launch starts from.
      total: last step of the run.

    >>> start_line(pathlib.Path("runs/a"), 0, 800)
    'steps 1 to 800; checkpoints, metrics, samples and speed are in runs/a'
    """
    steps = f"steps {step + 1} to {total}" if step < total else f"all {total} steps are done"
    return f"{steps}; checkpoints, metrics, samples and speed are in {directory}"


def end_line(directory: pathlib.Path, step: int, summary_file: str, best: Best) -> str:
    """Renders the last line of a run: the best evaluation, and the path of its summary.

    Args:
      directory: path of the run directory.
      step: last step of the run.
      summary_file: name of the summary.
      best: the best evaluation of the run.

    >>> best = Best("bleu", "max", 13.8, 50)
    >>> end_line(pathlib.Path("runs/a"), 800, "summary.json", best)
    'complete at step 800; best bleu 13.8 at step 50; written: runs/a/summary.json'
    """
    written = f"written: {directory / summary_file}"
    return "; ".join(filter(None, [f"complete at step {step}", str(best), written]))
