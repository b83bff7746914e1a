"""Runs the quickstart: SFT of teacher and student, supervised KD, on-policy GKD, and a report."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import sys
import time
import webbrowser
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table
import rich.text

from gkd import errors
from gkd.cli import command_line
from gkd.files.atomic_files import replace_file
from gkd.files.json_files import read_json
from gkd.report.report import report
from gkd.runs import tables
from gkd.runs.metrics_log import read_samples
from gkd.runs.run_directory import SUMMARY_FILE

METRIC = "exact_match"
TITLES = {
    "teacher": "teacher (SFT)",
    "start": "student (SFT)",
    "supervised_kd": "supervised KD (λ=0)",
    "gkd": "on-policy GKD (λ=1)",
}
_DISPLAYS = {"DISPLAY", "WAYLAND_DISPLAY"}  # set where a browser has a screen
ARMS = ("supervised_kd", "gkd")


def run_directories(directory: pathlib.Path, seed: int) -> dict[str, pathlib.Path]:
    """Builds the paths of the runs: one teacher for all seeds, three student runs per seed.

    Args:
      directory: path of the quickstart's folder.
      seed: seed of the student's runs.

    Returns:
      Run directories by name.
    """
    return {
        name: directory / name if name == "teacher" else directory / f"seed_{seed}" / name
        for name in TITLES
    }


def run(name: str, places: dict[str, pathlib.Path], seed: int, overrides: Sequence[str]) -> int:
    """Trains or continues one of the four runs.

    Args:
      name: name of a file in configs/runs/quickstart.
      places: run directories of `run_directories`.
      seed: seed of the student's runs; the teacher is the same for all seeds.
      overrides: further `--gin.NAME=VALUE` arguments.

    Returns:
      The exit code of the command line.
    """
    values = {"MODEL_DIR": str(places[name])}
    if name != "teacher":
        values["SEED"] = seed
    if name in ARMS:
        values |= {"TEACHER": str(places["teacher"]), "STUDENT": str(places["start"])}
    settings = [f"--gin.{key}={value!r}" for key, value in values.items()]
    file = f"--gin_file=configs/runs/quickstart/{name}.gin"
    return command_line.main(["train", file, *settings, *overrides])


def result_table(places: dict[str, pathlib.Path]) -> tuple[rich.table.Table, dict[str, Any]]:
    """Builds the table of results: exact match of every model, gains over SFT initialisation.

    Args:
      places: run directories of `run_directories`, with complete runs.

    Returns:
      The table to print, and its values as a dictionary.
    """
    summaries = {name: read_json(place / SUMMARY_FILE, dict) for name, place in places.items()}
    start = summaries["start"]["evaluation"][METRIC]
    rows, results = [], {}
    for name, title in TITLES.items():
        summary = summaries[name]
        score, seconds = summary["evaluation"][METRIC], summary["seconds_per_step"]
        gain = score - start if name in ARMS else None
        rows.append(
            (
                title,
                f"{summary['parameters']:,}",
                str(summary["steps"]),
                "–" if seconds is None else f"{seconds:.4f}",
                f"{score:.1f} %",
                "" if gain is None else f"{gain:+.1f}",
            )
        )
        results[name] = {METRIC: score, "gain": gain, "seconds_per_step": seconds}
    table = tables.terminal(
        ("model", "parameters", "steps", "seconds per step", "exact match", "gain"), rows,
        left=("model",), title="exact match of the final number on 500 new problems, greedy",
    )  # fmt: skip
    return table, results


def evaluate(name: str, places: dict[str, pathlib.Path], overrides: Sequence[str]) -> int:
    """Measures an arm with its teacher, for the report: greedy, samples, KL of every token.

    Args:
      name: name of the run.
      places: run directories of `run_directories`.
      overrides: those of the run.

    Returns:
      The exit code of the command line; 0 where the run has been measured since it was trained.
    """
    made, trained = places[name] / "evaluation-validation.json", places[name] / SUMMARY_FILE
    if made.exists() and made.stat().st_mtime_ns >= trained.stat().st_mtime_ns:
        return command_line.EXIT_OK
    values = {"MODEL_DIR": str(places[name]), "TEACHER": str(places["teacher"])}
    values |= {"EVALUATION_TEMPERATURES": (1.0,), "EVALUATION_SAMPLES": 4}
    settings = [f"--gin.{key}={value!r}" for key, value in values.items()]
    file = f"--gin_file=configs/runs/quickstart/{name}.gin"
    with contextlib.redirect_stdout(io.StringIO()):  # the report shows it
        return command_line.main(["evaluate", file, *overrides, *settings])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything and prints the results; a further call continues, or only prints.

    Args:
      arguments: --directory, --seed and `--gin.NAME=VALUE`; by default those of this process.

    Returns:
      0, or the exit code of the failed run.
    """
    parser = argparse.ArgumentParser(prog="launch/quickstart.sh", description=__doc__)
    parser.add_argument("--directory", default="runs/quickstart", help="folder of the runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the student's three runs")
    options, overrides = parser.parse_known_args(arguments)
    if unknown := [argument for argument in overrides if not argument.startswith("--gin.")]:
        parser.error(f"unknown argument {unknown[0]}")
    places = run_directories(pathlib.Path(options.directory), options.seed)
    began = time.monotonic()
    steps = [
        (title, functools.partial(run, name, places, options.seed, overrides))
        for name, title in TITLES.items()
    ]
    steps += [
        (f"evaluation of {TITLES[name]}", functools.partial(evaluate, name, places, overrides))
        for name in ARMS
    ]
    for number, (title, step) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {title}", file=sys.stderr)
        code = step()
        if code:
            return code
    folder = places["start"].parent
    try:
        table, results = result_table(places)
        replace_file(folder / "quickstart.json", json.dumps(results, indent=1) + "\n")
        console = rich.console.Console()
        _print_samples(console, places)
        console.print(table)
        page = report([places["teacher"], folder], output=folder / "report")
    except Exception as error:  # a damaged file of a run, a full disk
        if errors.as_user_error(error) is None:
            raise
        errors.report(error)
        return command_line.EXIT_FAILED
    print(f"{time.monotonic() - began:.0f} s")
    if sys.stdout.isatty() and (sys.platform == "darwin" or _DISPLAYS & os.environ.keys()):
        webbrowser.open(page.resolve().as_uri())
    return 0


def _print_samples(console: rich.console.Console, places: dict[str, pathlib.Path]) -> None:
    """Prints the first problems with the completion of every model."""
    tables = {}
    for name in ("start", *ARMS):
        tables[name] = read_samples(places[name])[-1]["rows"]
    for row, first in enumerate(tables["gkd"]):
        console.print(rich.text.Text(first["prompt"], style="bold"))
        texts = {"reference": first["reference"], "teacher": first["teacher"]}
        texts |= {TITLES[name]: rows[row]["student"] for name, rows in tables.items()}
        for title, text in texts.items():
            console.print(f"  {title:<22}{text}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
