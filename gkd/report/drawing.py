"""Draws the figures of a report with matplotlib: SVG for the page, PNG and PDF beside it."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gkd.files.atomic_files import replacing
from gkd.report.charts import Chart, DifferenceChart, HeatMap, LineChart, StackedBars

# Colours of arms that differ for every colour vision (after Okabe and Ito), with a contrast of 3:1
# on white; markers differ too, since there may be more arms than colours.
COLORS = ("#0072b2", "#d55e00", "#00855f", "#b0508a", "#8a6d00", "#3a8fc4", "#7b4ab5", "#5c5c5c")
_MARKERS = "osD^vPX*"
_INK, _FAINT = "#1b1f24", "#8b949e"
# In the page, styles of the sheet replace these colours, so that they follow light and dark.
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", "#ffffff": "--paper"} | {
    color: f"--arm-{i}" for i, color in enumerate(COLORS)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9, "font.family": "sans-serif",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.35,
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _FAINT, "grid.color": _FAINT,
    "xtick.color": _INK, "ytick.color": _INK, "axes.titlesize": 10, "axes.titleweight": "bold",
    "legend.frameon": False, "legend.fontsize": 7, "figure.facecolor": "#ffffff",
    "axes.facecolor": "#ffffff", "lines.markersize": 4, "lines.linewidth": 1.6,
    "axes.formatter.useoffset": False,
}  # fmt: skip
_SIZE = (4.2, 3.2)  # inches: legible in a column of 360 pixels
_LONGEST, _BESIDE, _WIDE = 30, 44, 56  # characters of a name; beside a verdict; of a title or axis
LONGEST_LEGEND = 14  # lines; with more, the figure has no legend
_MOST_MARKERS = 25  # points of a line that are marked


def svg(chart: Chart) -> str:
    """Draws a figure as an SVG element of a page.

    Args:
      chart: the figure.

    Returns:
      The element, with ids of its own, and the page's variables in place of colours.
    """
    file = io.StringIO()
    with _drawn(chart) as figure:
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(f": {color}", f": var({variable})")
    # Every figure has a "figure_1" and "axes_1"; a page may have each id once.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", text)
    box = re.search(r'viewBox="[\d. ]+"', text)
    head = (
        f'<svg class="figure" role="img" aria-labelledby="{chart.name}-caption" '
        f'{box[0] if box else ""} xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + text[text.index(">") + 1 :]


def save(chart: Chart, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes a figure as NAME.png and NAME.pdf.

    Args:
      chart: the figure.
      folder: an existing folder.

    Returns:
      The paths.
    """
    paths = []
    with _drawn(chart) as figure:
        for suffix, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            path = folder / f"{chart.name}.{suffix}"
            with replacing(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=200, metadata=metadata)
            paths.append(path)
    return paths


@contextlib.contextmanager
def _drawn(chart: Chart) -> Iterator[Any]:
    """Draws a chart as a matplotlib figure, to be saved in the same style; then closes it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({**_STYLE, "svg.hashsalt": chart.name}):
        figure, axes = pyplot.subplots(figsize=_SIZE, layout="constrained")
        axes.set_axisbelow(True)
        axes.set_title(_plain(chart.title, _WIDE), loc="left")
        _DRAW[type(chart)](chart, figure, axes)
        try:
            yield figure
        finally:
            pyplot.close(figure)


def _plain(text: str, longest: int = _LONGEST) -> str:
    """Text of users: of bounded length, no formula by a dollar sign, no hidden name by a `_`."""
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-longest // 2 + 1 :]}"
    text = f" {text}" if text.startswith("_") else text
    return text.replace("\\", "\\\\").replace("$", r"\$") if "$" in text else text


def _style(color: int) -> dict[str, Any]:
    return {
        "color": COLORS[color % len(COLORS)],
        "marker": _MARKERS[(color + color // len(COLORS)) % len(_MARKERS)],
    }


def _draw_lines(chart: LineChart, figure: Any, axes: Any) -> None:
    for line in chart.lines:
        style = _style(line.color)
        every = max(1, len(line.x) // _MOST_MARKERS)
        dashes = "--" if line.dashed else "-"
        axes.plot(
            line.x, line.y, linestyle=dashes if line.joined else "none", markevery=every,
            label=_plain(line.label), **style,
        )  # fmt: skip
        known = [
            (x, y, half)
            for x, y, half in zip(line.x, line.y, line.interval, strict=False)
            if half is not None
        ]
        if known and line.joined and len(known) > 1:
            x, y, half = zip(*known, strict=True)
            low = [a - b for a, b in zip(y, half, strict=True)]
            high = [a + b for a, b in zip(y, half, strict=True)]
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        elif known:
            x, y, half = zip(*known, strict=True)
            axes.errorbar(x, y, yerr=half, fmt="none", ecolor=style["color"], capsize=3)
        for x, y, text in zip(line.x, line.y, line.texts, strict=False):
            axes.annotate(
                _plain(text), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    for i, (label, value) in enumerate(chart.levels.items()):
        dots = (":", "-.", "--")[i % 3]
        axes.axhline(value, color=_INK, linestyle=dots, linewidth=1.2, label=_plain(label))
    if chart.log_x:
        axes.set_xscale("log")
    axes.set_xlabel(_plain(chart.x_label, _WIDE))
    axes.set_ylabel(_plain(chart.y_label, _WIDE))
    if 1 < len(chart.lines) + len(chart.levels) <= LONGEST_LEGEND:
        figure.legend(loc="outside lower center", ncols=2)


def _draw_heat_map(chart: HeatMap, figure: Any, axes: Any) -> None:
    import numpy as np
    from matplotlib import colormaps, colors

    values = np.array(
        [[np.nan if value is None else value for value in row] for row in chart.values]
    )
    most = max(float(np.nanmax(np.abs(values))), 1e-9)
    # Both halves stay light, so that dark text is legible on every cell.
    light = colors.ListedColormap(colormaps["RdBu"](np.linspace(0.25, 0.75, 255)))
    # Polygons: an image in an SVG is data that the page's policy forbids.
    axes.pcolormesh(values, cmap=light, vmin=-most, vmax=most, edgecolors="#ffffff")
    axes.invert_yaxis()
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if np.isfinite(value):
                axes.text(
                    j + 0.5, i + 0.5, f"{value:+.1f}", ha="center", va="center", color="#000000"
                )
    axes.grid(False)
    for ticks, labels in ((axes.set_xticks, chart.columns), (axes.set_yticks, chart.rows)):
        ticks([i + 0.5 for i in range(len(labels))], [_plain(text) for text in labels])
    axes.tick_params(length=0)
    axes.set_xlabel(_plain(chart.x_label, _WIDE))
    axes.set_ylabel(_plain(chart.y_label, _WIDE))


def _draw_bars(chart: StackedBars, figure: Any, axes: Any) -> None:
    left = [0.0] * len(chart.labels)
    for i, (part, lengths) in enumerate(chart.parts.items()):
        axes.barh(
            range(len(chart.labels)), lengths, left=left, height=0.6, label=_plain(part),
            color=COLORS[i], hatch=("", "//", "..", "xx")[i % 4], edgecolor="#ffffff",
        )  # fmt: skip
        left = [a + b for a, b in zip(left, lengths, strict=True)]
    axes.set_yticks(range(len(chart.labels)), [_plain(text) for text in chart.labels])
    axes.invert_yaxis()
    axes.set_xlabel(_plain(chart.x_label, _WIDE))
    figure.legend(loc="outside lower center", ncols=3)


def _draw_differences(chart: DifferenceChart, figure: Any, axes: Any) -> None:
    labels = {"seed": "each seed", "mean": "mean, 95% interval", "bound": "threshold"}
    for i, row in enumerate(chart.rows):
        of_row = {"y": i - 0.3, "transform": axes.get_yaxis_transform(), "va": "bottom"}
        axes.text(0, s=_plain(row.label, _BESIDE), fontsize=8, **of_row)
        axes.text(1, s=row.verdict, ha="right", fontsize=8, fontweight="bold", **of_row)
        axes.plot(
            row.values, [i] * len(row.values), linestyle="none", marker="o", color=_INK,
            fillstyle="none", label=labels.pop("seed", None),
        )  # fmt: skip
        for bound in row.bounds:
            axes.plot(
                [bound, bound], [i - 0.22, i + 0.22], color=COLORS[1], linestyle="--",
                label=labels.pop("bound", None),
            )  # fmt: skip
        if row.mean is not None:
            axes.errorbar(
                row.mean, i, xerr=row.interval, fmt="D", color=COLORS[0], capsize=4, markersize=6,
                label=labels.pop("mean", None),
            )  # fmt: skip
    axes.set_ylim(len(chart.rows) - 0.5, -0.8)
    axes.set_yticks([])
    axes.set_xlabel(_plain(chart.x_label, _WIDE))
    figure.legend(loc="outside lower center", ncols=3)


_DRAW: Mapping[type, Any] = {
    LineChart: _draw_lines, HeatMap: _draw_heat_map, StackedBars: _draw_bars,
    DifferenceChart: _draw_differences,
}  # fmt: skip
