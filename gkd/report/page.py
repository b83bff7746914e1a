"""Renders a report as one HTML page: escaped text, inline figures, no scripts, no network."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import gkd
from gkd.report.arms import Arm, Arms
from gkd.report.charts import Chart, LineChart
from gkd.report.drawing import LONGEST_LEGEND, svg
from gkd.report.result_charts import result_charts
from gkd.report.run_records import RunRecord
from gkd.report.sample_browser import KL_LEVELS, Example
from gkd.report.tables import (
    evaluations_table,
    reproduction,
    results_table,
    runs_table,
    signatures,
    speed_table,
)
from gkd.report.training_charts import time_chart, training_charts
from gkd.report.verdicts import verdict_charts, verdicts_table

_FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    Attributes:
      title: its title.
      records: all runs.
      arms: the runs, grouped.
      metrics: names of the evaluation metrics that arms are compared by.
      baseline: the arm that others are compared with.
      examples: sample outputs.
      problems: one line for each folder or file that was left out.
      verdicts: the decided claims of sweeps.
    """

    title: str
    records: Sequence[RunRecord]
    arms: Arms
    metrics: Sequence[str]
    baseline: Arm | None
    examples: Sequence[Example]
    problems: Sequence[str]
    verdicts: Sequence[Mapping[str, Any]] = ()

    def charts(self) -> dict[str, list[Chart]]:
        """Makes the figures of each section of the page."""
        times = time_chart(self.arms)
        training = training_charts(self.arms, self.metrics)
        score = [c for c in training if c.name.endswith(("-by-step", "-by-time"))]
        return {
            "claim_figures": verdict_charts(self.verdicts),
            "result_figures": [*score, *result_charts(self.arms, self.metrics)],
            "training_figures": [chart for chart in training if chart not in score],
            "speed_figures": [times] if times else [],
        }


def render(report: Report, charts: dict[str, list[Chart]]) -> str:
    """Renders the page.

    Args:
      report: its content.
      charts: the figures by section, see `Report.charts`.

    Returns:
      HTML. All text of runs is escaped; the page allows no script.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {
        section: [(chart, Markup(svg(chart))) for chart in some] for section, some in charts.items()
    }
    results = [results_table(report.arms, metric, report.baseline) for metric in report.metrics]
    with_tokens = any(output.tokens for row in report.examples for output in row.outputs)
    return environment.get_template("page.html").render(
        title=report.title,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        facts=_facts(report),
        sections=_sections(report, drawn),
        problems=report.problems,
        going=_going(report.records),
        verdicts=verdicts_table(report.verdicts),
        results=results,
        evaluations=evaluations_table(report.arms),
        examples=report.examples,
        legend=_legend() if with_tokens else (),
        speed=speed_table(report.records),
        runs=runs_table(report.records, report.metrics),
        reproduction=[reproduction(run) for run in report.records],
        signatures=signatures(report.records),
        footer=f"Written by gkd {gkd.__version__}, `python -m gkd report`.",
        without_legend=_without_legend,
        **drawn,
    )


def _facts(report: Report) -> str:
    states = collections.Counter(run.state for run in report.records)
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{len(report.records)} runs ({counted}) in {len(report.arms.arms)} arms; {now}"


def _going(records: Sequence[RunRecord]) -> str:
    """The runs that are not complete, by state."""
    texts = []
    for state in dict.fromkeys(run.state for run in records if run.state != "complete"):
        names = [f"{run.name} (step {run.step})" for run in records if run.state == state]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        texts.append(f"{state}: {', '.join(names[:5])}{more}")
    return "; ".join(texts)


def _sections(report: Report, drawn: dict[str, Any]) -> list[tuple[str, str]]:
    shown = [("claims", "Claims")] if report.verdicts else []
    shown.append(("results", "Results"))
    if evaluations_table(report.arms):
        shown.append(("evaluations", "Evaluations"))
    if drawn["training_figures"]:
        shown.append(("training", "During training"))
    if report.examples:
        shown.append(("samples", "Samples"))
    shown += [("speed", "Speed"), ("runs", "Runs")]
    return [*shown, *([("signatures", "Metrics")] if signatures(report.records) else [])]


def _without_legend(chart: Chart) -> str:
    """A sentence for a figure of too many lines for a legend."""
    lines = len(chart.lines) + len(chart.levels) if isinstance(chart, LineChart) else 0
    if lines <= LONGEST_LEGEND:
        return ""
    return f" {lines} lines, too many for a legend: name fewer directories to tell them apart."


def _legend() -> list[str]:
    bounds = ["0", *(f"{level:g}" for level in KL_LEVELS)]
    return [
        *(f"{low} to {high}" for low, high in zip(bounds, bounds[1:], strict=False)),
        f"{bounds[-1]} and more",
    ]
