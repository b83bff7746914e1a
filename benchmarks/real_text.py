"""Compares steps on rows of real lengths with their peers, in real tokens per second.

    python -m benchmarks.real_text [--gin_file=FILE] [--parts sft gkd] [--peer_python=PYTHON]
        [--t5x=CHECKOUT] [--directory=DIRECTORY] [--gin.NAME=VALUE …]

The rows have the lengths of a gin file's task (INPUT_LENGTH and TARGET_LENGTH cut them) or, without
one, lengths like XSum's. Every participant is a process of its own, batches the same rows in its
own way, and runs in turn: one batch for each of its strata, every one compiled beforehand. Tokens
are those of inputs and targets without padding. Writes real_text.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys

from benchmarks import machine, participants, real_lengths
from benchmarks.arguments import parse
from benchmarks.participants import OURS

NEEDS = {"gkd": "gkd", "t5x": "t5x, seqio, clu, fiddle, cached_property", "pytorch": "torch, trl"}
PARTS = ("sft", "gkd")


def main(arguments: list[str]) -> None:
    """Measures, prints and writes the results."""
    given, overrides = parse(_parser(), arguments)
    rows = _rows(given.gin_file, overrides, given.count)
    directory = pathlib.Path(given.directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    saved = directory / "rows.npz"
    rows.save(saved)
    pythons, environment = participants.available(NEEDS, given.participants, given)
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory / "programs"))
    limits = machine.measure()  # while nothing else runs
    print(
        f"{len(rows.inputs)} rows, {rows.inputs.mean():.1f} and {rows.targets.mean():.1f} tokens "
        f"in the mean, at most {rows.longest_input} and {rows.longest_target}; "
        f"{limits.flops / 1e9:.0f} GFLOP/s, {limits.bandwidth / 1e9:.1f} GB/s"
    )
    results = {"flops": limits.flops, "bandwidth": limits.bandwidth, "parts": {}}
    command = {"rows": str(saved), "size": given.size, "strata": given.strata, "steps": given.steps}
    for part in given.parts:
        with contextlib.ExitStack() as stack:
            workers = {}
            for name, python in pythons.items():
                log = directory / f"{name}.log"
                workers[name] = participants.Worker(
                    name, f"{name}_lengths_worker", python, environment, log
                )
                stack.callback(workers[name].close)
            taking = [pair for pair in _takers(part, given.packed) if pair[0] in workers]
            for taken in _measured(workers, taking, command, given.rounds):
                results["parts"][part] = taken
                (directory / "real_text.json").write_text(json.dumps(results, indent=1) + "\n")
        if given.rounds:
            print(table(part, taken), flush=True)


def _takers(part, packed):
    """Returns (participant, its name of the part) for all who take part, ours first."""
    theirs = [("t5x", part)]
    if part == "sft":
        theirs = [("t5x", f"sft packed {times}") for times in packed]
    return [(OURS, part), *theirs, ("pytorch", part)]


def _measured(workers, taking, command, rounds):
    """Runs all participants in turn, the first time to compile; yields all answers by label."""
    taken = {}
    for number in range(rounds + 1):
        for name, part in taking:
            answer = workers[name].run(**command, part=part)
            if number:
                taken[f"{name}, {part}"]["seconds"].append(answer["seconds"])
            else:
                taken[f"{name}, {part}"] = {"strata": answer["strata"], "seconds": []}
        yield taken


def table(part: str, taken: dict) -> str:
    """Renders a part's measurements as Markdown: rates by real tokens, and ratios to ours.

    Args:
      part: its name; ours is "gkd, PART".
      taken: by label, the strata as dictionaries and, for every round, the seconds of each.
    """
    times, lines = {}, []
    for label, entry in taken.items():
        of = [real_lengths.Stratum(**stratum) for stratum in entry["strata"]]
        times[label] = [real_lengths.seconds_per_token(one, of) for one in entry["seconds"]]
    ours = times[f"{OURS}, {part}"]
    for label, entry in taken.items():
        of = [real_lengths.Stratum(**stratum) for stratum in entry["strata"]]
        batches = sum(stratum.batches for stratum in of)
        tokens = sum(stratum.tokens * stratum.batches for stratum in of)
        padding = sum(stratum.positions * stratum.batches for stratum in of) / tokens
        rate = machine.spread([1 / time for time in times[label]])
        ratio = machine.spread([a / b for a, b in zip(ours, times[label], strict=True)])
        lines.append(
            f"| {label} | {tokens / batches:.0f} | {padding:.2f} "
            f"| {tokens / batches / rate['median']:.2f} "
            f"| {rate['median']:.0f} ({rate['min']:.0f}–{rate['max']:.0f}) "
            f"| {ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}) |"
        )
    return "\n".join([
        "\n| | tokens per step | positions per token | seconds per step | tokens/s (min–max) "
        "| our time ÷ its time |",
        "|---|---:|---:|---:|---:|---:|",
        *lines,
    ])  # fmt: skip


def _rows(gin_file, overrides, count):
    """The lengths of a gin file's training split, or like XSum's."""
    if gin_file is None:
        if overrides:
            raise SystemExit("--gin.NAME=VALUE overrides a gin file's values: give --gin_file")
        return real_lengths.xsum_like(count)
    from gkd.cli import command_line
    from gkd.cli.arguments import Command
    from gkd.data.tokenized_splits import tokenized_split

    command = Command("train", (gin_file,), ("MODEL_DIR='none'", *overrides))
    experiment = command_line.configured_experiment(command)
    columns = tokenized_split(experiment.task, experiment.batches.split).columns
    return real_lengths.drawn(
        columns["inputs"].lengths, columns["targets"].lengths,
        (experiment.batches.input_length, experiment.batches.target_length), count,
    )  # fmt: skip


def _parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    participants.add_arguments(parser)
    parser.add_argument("--gin_file", help="a run file; without it, lengths like XSum's")
    parser.add_argument("--count", type=int, default=4096, help="rows of the epoch")
    parser.add_argument(
        "--size", type=int, default=8, help="rows of a batch; packed: as many tokens"
    )
    parser.add_argument("--strata", type=int, default=12, help="batches of a round, at most")
    parser.add_argument(
        "--packed", type=int, nargs="+", default=[1, 2], choices=range(1, 9),
        help="T5X's packed rows, in lengths of the longest row",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=1, help="of each participant in a round")
    parser.add_argument("--rounds", type=int, default=3, help="0 only compiles")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--participants", nargs="+", default=list(NEEDS), choices=list(NEEDS))
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
