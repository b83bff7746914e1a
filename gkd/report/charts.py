"""The figures of a report as data: lines with intervals, heat maps, stacked bars, differences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence


def stem_of(name: str) -> str:
    """Returns a metric's or a setting's name as part of the name of a file and of ids in HTML.

    >>> stem_of("long/exact_match")
    'long-exact_match'
    """
    return re.sub(r"[^\w.]+", "-", name)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      label: its name in the legend.
      x, y: its points, in the order of x.
      interval: half the width of the 95% interval at every point; None where there is none.
      color: index of the colour; lines of one arm share it in all figures.
      dashed: draw the line dashed.
      joined: draw a line through the points; false for points alone.
      texts: a short text beside each point, or none.
    """

    label: str
    x: Sequence[float | int]
    y: Sequence[float | int]
    interval: Sequence[float | int | None] = ()
    color: int = 0
    dashed: bool = False
    joined: bool = True
    texts: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class LineChart:
    """Lines over a common axis.

    Attributes:
      name: stem of the figure's files.
      title: one line above it.
      x_label, y_label: names of the axes with units.
      lines: the lines.
      levels: horizontal lines by their labels, e.g. the teacher's score.
      log_x: a logarithmic x axis.
      note: one sentence below the figure: how to read it, and what was averaged.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    levels: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    log_x: bool = False
    note: str = ""

    def description(self) -> str:
        """Describes the figure in words, for readers who do not see it."""
        parts = [
            f"{line.label}: from {line.y[0]:.4g} at {line.x[0]:.4g} to {line.y[-1]:.4g} at "
            f"{line.x[-1]:.4g}"
            for line in self.lines
        ]
        parts += [f"{label}: {value:.4g}" for label, value in self.levels.items()]
        return f"{self.y_label} by {self.x_label}. {'; '.join(parts)}."


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A grid of numbers.

    Attributes:
      name, title, note: as for `LineChart`.
      x_label, y_label: names of the columns' and the rows' axis.
      columns, rows: their labels.
      values: by row and column; None where no run is.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | int | None]]
    note: str = ""

    def description(self) -> str:
        """Describes the figure in words."""
        cells = [
            f"{row}, {column}: {value:+.3g}"
            for row, line in zip(self.rows, self.values, strict=True)
            for column, value in zip(self.columns, line, strict=True)
            if value is not None
        ]
        return f"{self.y_label} and {self.x_label}. {'; '.join(cells)}."


@dataclasses.dataclass(frozen=True)
class StackedBars:
    """Horizontal bars that are divided into parts.

    Attributes:
      name, title, note: as for `LineChart`.
      x_label: name of the axis with its unit.
      labels: one per bar.
      parts: the length of each part in every bar, by the part's name.
    """

    name: str
    title: str
    x_label: str
    labels: Sequence[str]
    parts: Mapping[str, Sequence[float | int]]
    note: str = ""

    def description(self) -> str:
        """Describes the figure in words."""
        bars = [
            f"{label}: "
            + ", ".join(f"{part} {lengths[i]:.3g}" for part, lengths in self.parts.items())
            for i, label in enumerate(self.labels)
        ]
        return f"{self.x_label}. {'; '.join(bars)}."


@dataclasses.dataclass(frozen=True)
class Difference:
    """A row of a `DifferenceChart`.

    Attributes:
      label: one line above it.
      verdict: a word or two at its end.
      values: the difference for each seed.
      mean, interval: their mean and half the width of its 95% interval; None where there is none.
      bounds: the thresholds that decide.
    """

    label: str
    verdict: str
    values: Sequence[float | int]
    mean: float | None
    interval: float | None
    bounds: Sequence[float | int] = ()


@dataclasses.dataclass(frozen=True)
class DifferenceChart:
    """Differences one below the other, each with its interval and its thresholds.

    Attributes:
      name, title, note: as for `LineChart`.
      x_label: name of the axis with its unit.
      rows: the differences.
    """

    name: str
    title: str
    x_label: str
    rows: Sequence[Difference]
    note: str = ""

    def description(self) -> str:
        """Describes the figure in words."""
        rows = []
        for row in self.rows:
            mean = "no value" if row.mean is None else f"{row.mean:+.3g}"
            mean += "" if row.interval is None else f" ± {row.interval:.2g}"
            rows.append(f"{row.label}: {mean}, {row.verdict}")
        return f"{self.x_label}. {'; '.join(rows)}."


Chart = LineChart | HeatMap | StackedBars | DifferenceChart
