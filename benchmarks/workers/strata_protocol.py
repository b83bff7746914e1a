"""Runs the strata of a worker: one batch for each, timed, in answer to a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from benchmarks import real_lengths
from benchmarks.workers.protocol import answer_commands, timed

Runs = list[tuple[real_lengths.Stratum, Callable[[], object]]]


def serve(make: Callable[..., Mapping[str, Callable[[], Runs]]]) -> None:
    """Answers until standard input ends.

    A command {"rows": path of the rows' lengths, "size", "strata", "part", "steps"} runs the strata
    of a part, each as often as makes `steps` steps at least, after a first time that compiles. The
    answer is {"strata": […], "seconds": [of a batch of each], "first_seconds"}.

    Args:
      make: (rows, rows of a batch, most strata) -> {part: () -> [(stratum, run)]}, each run
        blocking until its result is there.
    """
    parts: dict = {}
    known: dict = {}

    def answer(command):
        if not parts:
            rows = real_lengths.load(command["rows"])
            parts.update(make(rows, command["size"], command["strata"]))
        name, first = command["part"], None
        if name not in known:
            known[name] = parts[name]()
            first = [timed(run) for _, run in known[name]]
        runs = known[name]
        times = -(-command["steps"] // len(runs))
        seconds = [0.0] * len(runs)
        for _ in range(times):
            for place, (_, run) in enumerate(runs):
                seconds[place] += timed(run) / times
        return {
            "strata": [dataclasses.asdict(stratum) for stratum, _ in runs],
            "seconds": seconds,
            "first_seconds": first,
        }

    answer_commands(answer)
