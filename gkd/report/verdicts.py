"""The verdicts on claims that sweeps have written, as a table and as figures."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile, one_line
from gkd.files.json_files import Field, check_fields, check_value, read_json
from gkd.metrics.intervals import mean_text
from gkd.report.charts import Difference, DifferenceChart, stem_of
from gkd.report.run_records import folders_below
from gkd.report.tables import Table

VERDICT_FILE = "verdict.json"
_FIELDS = {
    "claim": Field(kinds=(str,), required=True),
    "verdict": Field(kinds=(str,), required=True),
    "comparisons": Field(kinds=(dict,), required=True),
    "warnings": Field(kinds=(list,)),
}
_COMPARISON = {
    "mean": Field(kinds=(float,), required=True, none=True),
    "interval": Field(kinds=(float,), required=True, none=True),
    "verdict": Field(kinds=(str,), required=True),
    "values": Field(kinds=(list,), required=True),
    "metric": Field(kinds=(str,)),
    "above": Field(kinds=(float,)),
    "below": Field(kinds=(float,)),
}


def find_verdicts(
    directories: Sequence[str | os.PathLike[str]],
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Reads every verdict.json in some folders.

    Args:
      directories: directories of sweeps, or folders that hold some at any depth.

    Returns:
      The decided claims by path, see `gkd.sweep.claims.decide`, and one line per
      file that could not be read.
    """
    paths = {
        folder.resolve(): folder / VERDICT_FILE
        for directory in directories
        for folder, files in folders_below(directory)
        if VERDICT_FILE in files
    }
    decided, problems = [], []
    for path in paths.values():
        try:
            decided.append(_decided(path))
        except (InvalidFile, OSError) as error:
            problems.append(f"{one_line(error)}: left out")
    return decided, problems


def _decided(path: pathlib.Path) -> Mapping[str, Any]:
    decided = read_json(path, dict)
    check_fields({name: decided[name] for name in _FIELDS if name in decided}, _FIELDS, str(path))
    for warning in decided.get("warnings", ()):
        check_value(warning, Field(kinds=(str,)), f"{path}: warnings")
    for name, comparison in decided["comparisons"].items():
        if not isinstance(comparison, dict):
            raise InvalidFile(f"{path}: {name} is no object")
        known = {key: comparison[key] for key in _COMPARISON if key in comparison}
        check_fields(known, _COMPARISON, f"{path}: {name}")
        for value in comparison["values"]:
            check_value(value, Field(kinds=(float,)), f"{path}: {name}: values")
    return decided


def verdicts_table(decided: Sequence[Mapping[str, Any]]) -> Table | None:
    """Lists the claims with their verdicts, each followed by its comparisons.

    Args:
      decided: the decided claims.
    """
    if not decided:
        return None
    rows = []
    for claim in decided:
        rows.append([claim["claim"], claim["verdict"], ""])
        rows += [["— warning", warning, ""] for warning in claim.get("warnings", ())]
        for name, comparison in claim["comparisons"].items():
            rows.append([f"— {name}", comparison["verdict"], mean_text(comparison, "+")])
    caption = (
        "A comparison holds where its whole 95% interval is on the right side of its threshold"
    )
    return Table(caption, ["claim", "verdict", "difference"], rows, [2])


def verdict_charts(decided: Sequence[Mapping[str, Any]]) -> list[DifferenceChart]:
    """Draws each claim's comparisons: every seed's difference, their interval, the thresholds.

    Args:
      decided: the decided claims.

    Returns:
      A chart for each claim and metric: metrics have units of their own.
    """
    charts = []
    for number, claim in enumerate(decided, start=1):
        by_metric: dict[str, list[Difference]] = {}
        for label, each in claim["comparisons"].items():
            bounds = [each[bound] for bound in ("above", "below") if bound in each]
            row = Difference(
                label, each["verdict"], each["values"], each["mean"], each["interval"], bounds
            )
            by_metric.setdefault(each.get("metric", "metric"), []).append(row)
        for metric, rows in by_metric.items():
            name = f"claim-{number}" + (f"-{stem_of(metric)}" if len(by_metric) > 1 else "")
            charts.append(
                DifferenceChart(
                    name, f"Claim: {claim['verdict']}", f"difference in {metric.replace('_', ' ')}",
                    rows, note=". ".join([claim["claim"], *claim.get("warnings", ())]) + ".",
                )
            )  # fmt: skip
    return charts
