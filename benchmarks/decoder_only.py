"""Compares sampling and the on-policy step of SmolLM2-135M with transformers, in one run.

    python -m benchmarks.decoder_only [--peer_python=PYTHON] [--directory=DIRECTORY]

Student and teacher have its architecture and random parameters; 8 prompts of 128 tokens, 128 tokens
written by each, float32. In every round each part runs once, in turn. Prints medians and ratios,
and writes decoder_only.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys

from benchmarks import machine, participants
from benchmarks.participants import OURS
from benchmarks.workloads import CHATS

NEEDS = {OURS: "gkd", "pytorch": "torch, trl, transformers"}
PARTS = ("sample", "step")


def main(arguments: list[str]) -> None:
    """Measures, prints and writes the results."""
    given = _parser().parse_args(arguments)
    directory = pathlib.Path(given.directory)
    directory.mkdir(parents=True, exist_ok=True)
    pythons, environment = participants.available(NEEDS, NEEDS, given)
    limits = machine.measure()  # while nothing else runs
    print(f"the machine: {limits.flops / 1e9:.0f} GFLOP/s, {limits.bandwidth / 1e9:.1f} GB/s")
    results = {"flops": limits.flops, "bandwidth": limits.bandwidth, "parts": {}}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, python in pythons.items():
            worker = participants.Worker(
                name, f"{name}_decoder_worker", python, environment, directory / f"{name}.log"
            )
            stack.callback(worker.close)
            workers[name] = worker
        for part in given.parts:
            results["parts"][part] = _part(workers, part, given)
            print(_table(part, results["parts"][part], given.rows), flush=True)
    (directory / "decoder_only.json").write_text(json.dumps(results, indent=1) + "\n")


def _part(workers, part, given) -> dict[str, dict]:
    """Measures one part with every worker, round by round; the peer also compiled."""
    taken = {}
    ways = [(name, part) for name in workers]
    if "pytorch" in workers and not given.eager:
        ways.append(("pytorch", f"compiled {part}"))
    for number in range(given.rounds + 1):  # the first warms up, and compiles
        for name, one in ways:
            command = {"workload": next(iter(CHATS)), "rows": given.rows, "part": one}
            answer = workers[name].run(**command, runs=min(number, 1))
            label = name if one == part else f"{name}, compiled"
            entry = taken.setdefault(label, {"seconds": [], "peak_bytes": 0})
            entry["seconds"] += answer["seconds"]
            entry["peak_bytes"] = max(entry["peak_bytes"], answer["peak_bytes"])
    for entry in taken.values():
        entry |= machine.spread(entry["seconds"])
    return taken


def _table(part, taken, rows) -> str:
    """Renders a part as Markdown."""
    tokens = rows * CHATS["chats"].target
    lines = [
        f"\n{part}, {rows} rows\n",
        "| | seconds (min–max) | tokens/s | time by ours | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, entry in taken.items():
        pairs = zip(entry["seconds"], taken[OURS]["seconds"], strict=True)
        ratio = machine.spread([theirs / ours for theirs, ours in pairs])
        lines.append(
            f"| {name} | {entry['median']:.2f} ({entry['min']:.2f}–{entry['max']:.2f}) "
            f"| {tokens / entry['median']:.0f} "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) "
            f"| {entry['peak_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    participants.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--eager", action="store_true", help="leave out the compiled peer")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
