"""The verb `report`: one page of figures, tables and samples from run directories."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence

from gkd.errors import InvalidValue, MissingFile
from gkd.files.atomic_files import replace_file
from gkd.report.arms import Arms, group_runs
from gkd.report.drawing import save
from gkd.report.page import Report, render
from gkd.report.run_records import find_runs
from gkd.report.sample_browser import collect_examples, fewer
from gkd.report.tables import find_baseline
from gkd.report.verdicts import find_verdicts

PAGE_FILE = "report.html"
FIGURES_FOLDER = "figures"
LARGEST = 5_000_000  # bytes of the page
_MOST_METRICS = 3  # that arms are compared by, unless they are named


def report(
    directories: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    metric: Sequence[str] | None = None,
    baseline: str | None = None,
    examples: int = 20,
) -> pathlib.Path:
    """Writes the report of some runs, and prints its path.

    Runs that are not complete are marked as such; a repeated command updates the page.

    Args:
      directories: run directories, sweeps, or folders that hold some at any depth.
      output: the folder to write: report.html, and figures/ with PNG and PDF. None is `report` in
        the first directory that exists.
      metric: names of evaluation metrics that arms are compared by, e.g. rouge2; None takes those
        that the runs choose their best checkpoints by.
      baseline: name of the arm that others are compared with, seed by seed; None is the
        first whose λ is 0, else the first.
      examples: prompts in the browser of samples.

    Returns:
      The path of the page.

    Raises:
      MissingFile: no folder holds a run.
      InvalidValue: no run has the metric, or no arm is called like the baseline.
    """
    records, problems = find_runs(directories)
    for line in problems:
        print(f"gkd: warning: {line}", file=sys.stderr)
    if not records:
        named = ", ".join(os.fspath(directory) for directory in directories)
        raise MissingFile(
            f"no run in {named}: name run directories (MODEL_DIR), a sweep's, or a folder of them"
        )
    arms = group_runs(records)
    samples, unreadable = collect_examples(arms, examples)
    verdicts, damaged = find_verdicts(directories)
    unreadable += damaged
    for line in unreadable:
        print(f"gkd: warning: {line}", file=sys.stderr)
    first = next(directory for directory in map(pathlib.Path, directories) if directory.is_dir())
    folder = pathlib.Path(output or first / "report")
    content = Report(
        title=_title(directories),
        records=records,
        arms=arms,
        metrics=_metrics(arms, metric),
        baseline=find_baseline(arms, baseline),
        examples=samples,
        problems=[*problems, *unreadable],
        verdicts=verdicts,
    )
    charts = content.charts()
    page = render(content, charts)
    while len(page.encode()) > LARGEST and content.examples:
        content = dataclasses.replace(content, examples=fewer(content.examples))
        page = render(content, charts)
    figures = folder / FIGURES_FOLDER
    figures.mkdir(parents=True, exist_ok=True)
    for chart in [chart for some in charts.values() for chart in some]:
        save(chart, figures)
    path = folder / PAGE_FILE
    replace_file(path, page)
    print(f"report: {path}   figures: {figures}")
    return path


def _title(directories: Sequence[str | os.PathLike[str]]) -> str:
    paths = [pathlib.Path(directory).resolve() for directory in directories]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    parents = {path.parent for path in paths}
    within = f"{parents.pop().name}: " if len(paths) > 1 == len(parents) else ""
    return f"Runs in {within}{', '.join(path.name for path in paths[:3])}{more}"


def _metrics(arms: Arms, named: Sequence[str] | None) -> list[str]:
    """The metrics to compare arms by."""
    runs = [run for arm in arms.arms for run in arm.runs]
    measured = {
        name.removeprefix("evaluation/"): None
        for run in runs
        for row in run.metrics
        for name in row
        if name.startswith("evaluation/")
    }
    if named:
        for name in named:
            if name not in measured:
                known = ", ".join(measured) or "none yet"
                raise InvalidValue(f"--metric is {name!r}, which no run has; measured are {known}")
        return list(dict.fromkeys(named))
    best = collections.Counter(
        run.setting("best_metric") for run in runs if run.setting("best_metric") in measured
    )
    chosen = [name for name, _ in best.most_common(_MOST_METRICS)]
    return chosen or list(measured)[:1]
