"""Compares the speed of gkd with its peers: sampling and the whole step, interleaved in one run.

    python -m benchmarks.speed [--peer_python=PYTHON] [--t5x=CHECKOUT] [--directory=DIRECTORY]

Every participant is a process of its own. In every round each of them runs once, in turn, so that a
machine that slows down slows all of them. Prints medians, ratios to the fastest peer, and shares of
the bound that this machine's arithmetic and memory set; writes speed.json and speed.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys

import matplotlib

from benchmarks import machine, participants, workloads
from benchmarks.participants import OURS

matplotlib.use("agg")
import matplotlib.pyplot as plt

NEEDS = {
    "gkd": "gkd",
    "gkd_lean": "gkd",
    "pytorch": "torch, trl",
    "flax": "transformers, jax",
    "t5x": "t5x",
}


def main(arguments: list[str]) -> None:
    """Measures, prints and writes the results."""
    given = _parser().parse_args(arguments)
    directory = pathlib.Path(given.directory)
    directory.mkdir(parents=True, exist_ok=True)
    pythons, environment = participants.available(NEEDS, given.participants, given)
    results = {"rounds": given.rounds, "cases": []}
    for name in given.workloads:
        work = workloads.WORKLOADS[name]
        for part, all_rows in (("sample", given.rows), ("step", given.step_rows)):
            taking = [p for p in pythons if p != ("flax" if part == "step" else "gkd_lean")]
            limits = machine.measure()  # while nothing else runs
            with contextlib.ExitStack() as stack:
                workers = []
                for participant in taking:
                    log = directory / f"{participant}.log"
                    worker = participants.Worker(
                        participant, f"{participant}_worker", pythons[participant], environment, log
                    )
                    stack.callback(worker.close)
                    workers.append(worker)
                for rows in all_rows:
                    case = _case(workers, name, part, rows, given.rounds)
                    bound = (
                        workloads.sampling_seconds(workloads.STUDENT, rows, work, limits)
                        if part == "sample"
                        else workloads.step_seconds(rows, work, limits)
                    )
                    case |= {"bound": bound, "flops": limits.flops, "bandwidth": limits.bandwidth}
                    results["cases"].append(case)
                    print(_table(case, work), flush=True)
    (directory / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    _figure(results["cases"], directory / "speed.png")


def _case(workers, name, part, rows, rounds):
    """Measures one part of one workload with every worker, round by round."""
    taken = {}
    for round_number in range(rounds + 1):  # the first warms up, and compiles
        for worker in workers:
            parts = (part, "supervised") if (worker.name, part) == (OURS, "step") else (part,)
            for one in parts:
                answer = worker.run(workload=name, rows=rows, part=one, runs=min(round_number, 1))
                label = worker.name if one == part else f"{worker.name} {one}"
                entry = taken.setdefault(label, {"seconds": [], "peak_bytes": 0})
                entry["seconds"] += answer["seconds"]
                entry["peak_bytes"] = max(entry["peak_bytes"], answer["peak_bytes"])
                if round_number == 0:
                    entry["first_seconds"] = answer["first_seconds"]
    for entry in taken.values():
        entry |= machine.spread(entry["seconds"])
        entry["compile_seconds"] = max(0.0, entry["first_seconds"] - entry["median"])
    return {"workload": name, "part": part, "rows": rows, "taken": taken}


def _table(case, work) -> str:
    """Renders a case as Markdown."""
    taken, tokens = case["taken"], case["rows"] * work.target
    lines = [
        f"\n{case['workload']}, {case['part']}, {case['rows']} rows; the machine: "
        f"{case['flops'] / 1e9:.0f} GFLOP/s, {case['bandwidth'] / 1e9:.1f} GB/s, "
        f"bound {case['bound']:.2f} s\n",
        "| | seconds (min–max) | tokens/s | share of the bound | time by ours | peak memory | "
        "compile |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in taken.items():
        # Round by round: what the machine did to one it did to the other.
        pairs = zip(entry["seconds"], taken[OURS]["seconds"], strict=True)
        ratio = machine.spread([theirs / ours for theirs, ours in pairs])
        bound = "" if "supervised" in name else f"{100 * case['bound'] / entry['median']:.0f}%"
        lines.append(
            f"| {name} | {entry['median']:.2f} ({entry['min']:.2f}–{entry['max']:.2f}) "
            f"| {tokens / entry['median']:.0f} | {bound} "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) "
            f"| {entry['peak_bytes'] / 1e9:.2f} GB | {entry['compile_seconds']:.0f} s |"
        )
    return "\n".join(lines)


def _figure(cases, path) -> None:
    """Draws the medians of every case, with the lower bound as a line."""
    figure, axes = plt.subplots(1, len(cases), figsize=(2.4 * len(cases), 3.2), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        names = list(case["taken"])
        medians = [case["taken"][name]["median"] for name in names]
        colors = ["tab:blue" if name.startswith(OURS) else "tab:gray" for name in names]
        axis.bar(range(len(names)), medians, color=colors)
        axis.axhline(case["bound"], color="black", linestyle=":", linewidth=1)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
        axis.set_title(f"{case['workload']}\n{case['part']}, {case['rows']} rows", fontsize=8)
        axis.tick_params(axis="y", labelsize=7)
    axes[0][0].set_ylabel("seconds (dotted: the machine's bound)", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    participants.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--step_rows", type=int, nargs="*", default=[8])
    parser.add_argument("--workloads", nargs="+", default=list(workloads.WORKLOADS))
    parser.add_argument("--participants", nargs="+", default=list(NEEDS))
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
