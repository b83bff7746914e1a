"""Measures the cost of sampling and of a step against each size alone: a figure, and slopes.

    python -m benchmarks.scaling [--rounds=3] [--directory=DIRECTORY]

A student of T5 v1.1 small's width with four layers learns from a teacher of its own size. Each
axis is doubled three times while the others stay. Where cost is linear with a constant part, a
doubling costs at most twice as much: its exponent is at most 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

import matplotlib
import numpy as np

from benchmarks.machine import spread
from benchmarks.workers import gkd_worker
from benchmarks.workloads import STUDENT, Workload

matplotlib.use("agg")
import matplotlib.pyplot as plt

BASE = {"batch": 4, "input length": 128, "output length": 32, "vocabulary": 8192, "layers": 4}
AXES = {
    "batch": (2, 4, 8, 16),
    "input length": (64, 128, 256, 512),
    "output length": (16, 32, 64, 128),
    "vocabulary": (4096, 8192, 16384, 32768),
    "layers": (2, 4, 8, 16),
}
PARTS = ("sample", "step")


def main(arguments: list[str]) -> None:
    """Measures, prints, writes scaling.json and scaling.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", default="runs/benchmarks")
    given = parser.parse_args(arguments)
    directory = pathlib.Path(given.directory)
    directory.mkdir(parents=True, exist_ok=True)
    results = {}
    for axis, values in AXES.items():
        results[axis] = [
            {"size": value, **measure({**BASE, axis: value}, given.rounds)} for value in values
        ]
        for part in PARTS:
            medians = [entry[part]["median"] for entry in results[axis]]
            exponents = [math.log2(b / a) for a, b in zip(medians, medians[1:], strict=False)]
            print(
                f"{axis}, {part}: "
                + ", ".join(f"{n}: {x:.3f} s" for n, x in zip(values, medians, strict=True))
                + "; exponents "
                + ", ".join(f"{x:.2f}" for x in exponents),
                flush=True,
            )
    (directory / "scaling.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, directory / "scaling.png")


def measure(sizes: dict[str, int], rounds: int) -> dict[str, dict[str, float]]:
    """Measures the seconds of both parts after warm-up."""
    size = dataclasses.replace(STUDENT, layers=sizes["layers"])
    generator = np.random.default_rng(0)
    prompts, targets = (
        generator.integers(3, 4000, (sizes["batch"], sizes[name])).astype(np.int32)
        for name in ("input length", "output length")
    )
    work = Workload(sizes["input length"], sizes["output length"])
    parts = gkd_worker.make(work, prompts, targets, (size, size), sizes["vocabulary"])
    found = {}
    for part in PARTS:
        parts[part]()
        seconds = []
        for _ in range(rounds):
            begin = time.perf_counter()
            parts[part]()
            seconds.append(time.perf_counter() - begin)
        found[part] = spread(seconds)
    return found


def draw(results, path: pathlib.Path) -> None:
    """Draws one log-log panel per axis, with a line of slope 1 through the last point."""
    figure, axes = plt.subplots(1, len(results), figsize=(2.6 * len(results), 3), squeeze=False)
    for panel, (axis, entries) in zip(axes[0], results.items(), strict=True):
        values = [entry["size"] for entry in entries]
        for part, color in zip(PARTS, ("tab:blue", "tab:orange"), strict=True):
            medians = [entry[part]["median"] for entry in entries]
            panel.loglog(values, medians, "o-", color=color, label=part)
            panel.loglog(values, [medians[-1] * v / values[-1] for v in values], ":", color=color)
        panel.set_xticks(values, [str(v) for v in values], fontsize=7)
        panel.minorticks_off()
        panel.set_title(axis, fontsize=9)
    axes[0][0].set_ylabel("seconds (dotted: linear)", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(sys.argv[1:])
