"""The main job from one command: a teacher, a student's start, two ways to distil, and a table."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from typing import Any

import rich.console
import rich.table

from gkd.jobs import command_line
from gkd.jobs.metrics_log import read_metrics
from gkd.jobs.training_loop import SUMMARY_FILE

METRIC = "exact_match"
TITLES = {
    "teacher": "teacher (SFT)",
    "start": "student, start (SFT)",
    "supervised_kd": "supervised KD (λ=0)",
    "gkd": "on-policy GKD (λ=1)",
}
ARMS = ("supervised_kd", "gkd")


def run(name: str, directory: pathlib.Path, seed: int) -> int:
    """Trains one of the four runs, or continues it; returns the command line's exit code.

    Args:
      name: a file of configs/runs/quickstart.
      directory: where the four run directories lie.
      seed: of the student's runs; the teacher is the same for all seeds.
    """
    values = {"MODEL_DIR": str(directory / name)}
    if name != "teacher":
        values["SEED"] = seed
    if name in ARMS:
        values |= {"TEACHER": str(directory / "teacher"), "STUDENT": str(directory / "start")}
    overrides = [f"--gin.{key}={value!r}" for key, value in values.items()]
    return command_line.main(
        ["train", f"--gin_file=configs/runs/quickstart/{name}.gin", *overrides]
    )


def result_table(directory: pathlib.Path) -> tuple[rich.table.Table, dict[str, Any]]:
    """What came out: exact match of every model, gains of the arms over their common start.

    Args:
      directory: where the four run directories lie.

    Returns:
      The table to print, and the same as a dictionary.
    """
    summaries = {name: json.loads((directory / name / SUMMARY_FILE).read_text()) for name in TITLES}
    start = summaries["start"]["evaluation"][METRIC]
    table = rich.table.Table(title="exact match of the final number on new problems, greedy")
    for column in ("model", "parameters", "steps", "seconds a step", "exact match", "gain"):
        table.add_column(column, justify="left" if column == "model" else "right")
    results = {}
    for name, title in TITLES.items():
        summary = summaries[name]
        score, seconds = summary["evaluation"][METRIC], summary["seconds_per_step"]
        gain = score - start if name in ARMS else None
        table.add_row(
            title,
            f"{summary['parameters']:,}",
            str(summary["steps"]),
            "–" if seconds is None else f"{seconds:.4f}",
            f"{score:.1f} %",
            "" if gain is None else f"{gain:+.1f}",
        )
        results[name] = {METRIC: score, "gain": gain, "seconds_per_step": seconds}
    return table, results


def draw(directory: pathlib.Path, path: pathlib.Path) -> None:
    """A figure of exact match by training step: both arms, their start, and the teacher's line.

    Args:
      directory: where the four run directories lie.
      path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=150)
    teacher = json.loads((directory / "teacher" / SUMMARY_FILE).read_text())
    axes.axhline(teacher["evaluation"][METRIC], color="0.4", linestyle="--", label="teacher")
    for name in ARMS:
        rows = [row for row in read_metrics(directory / name) if f"evaluation/{METRIC}" in row]
        scores = [row[f"evaluation/{METRIC}"] for row in rows]
        axes.plot([row["step"] for row in rows], scores, marker="o", label=TITLES[name])
    axes.set_xlabel("updates after the SFT start")
    axes.set_ylabel("exact match on new problems (%)")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Runs everything and prints what came out; run again, it continues or only prints.

    Args:
      arguments: --directory and --seed; the process's own when None.

    Returns:
      0, or the exit code of the run that failed.
    """
    parser = argparse.ArgumentParser(prog="launch/quickstart.sh", description=__doc__)
    parser.add_argument("--directory", default="runs/quickstart", help="where the runs are kept")
    parser.add_argument("--seed", type=int, default=0, help="of the student's start and both arms")
    options = parser.parse_args(arguments)
    directory = pathlib.Path(options.directory)
    began = time.monotonic()
    for number, (name, title) in enumerate(TITLES.items(), start=1):
        print(f"\n[{number}/{len(TITLES)}] {title}", file=sys.stderr)
        code = run(name, directory, options.seed)
        if code:
            return code
    table, results = result_table(directory)
    figure = directory / "quickstart.png"
    draw(directory, figure)
    (directory / "quickstart.json").write_text(json.dumps(results, indent=1) + "\n")
    console = rich.console.Console()
    console.print(table)
    _print_samples(console, directory)
    console.print(f"figure: {figure}   runs: {directory}/*   {time.monotonic() - began:.0f} s")
    return 0


def _print_samples(console: rich.console.Console, directory: pathlib.Path) -> None:
    """The first problems with what each model writes."""
    tables = {}
    for name in ("start", *ARMS):
        lines = (directory / name / "samples.jsonl").read_text().splitlines()
        tables[name] = json.loads(lines[-1])["rows"]
    for row in range(min(len(rows) for rows in tables.values())):
        console.print(f"\n[bold]{tables['gkd'][row]['prompt']}[/bold]")
        console.print(f"  {'reference':<22}{tables['gkd'][row]['reference']}", highlight=False)
        console.print(f"  {'teacher':<22}{tables['gkd'][row]['teacher']}", highlight=False)
        for name, rows in tables.items():
            console.print(f"  {TITLES[name]:<22}{rows[row]['student']}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
