"""The loop of a worker: reads one JSON command per line, runs it, answers with a JSON line."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.workloads import WORKLOADS, Workload

_USED_IDS = (3, 32000)


def answer_commands(answer: Callable[[dict], dict]) -> None:
    """Reads commands, and prints the answer to each, until standard input ends.

    Args:
      answer: command -> answer, both of JSON's types.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def serve(make: Callable, workloads: Mapping[str, Workload] = WORKLOADS) -> None:
    """Runs parts of workloads until standard input ends.

    A command {"workload", "rows", "part", "runs"} runs one part of one workload, once to warm up
    and then `runs` times, and is answered with {"first_seconds", "seconds": […], "peak_bytes"}: the
    process's largest resident size during the counted runs.

    Args:
      make: (workload, prompts int32 [B, S], targets int32 [B, T]) -> {part: () -> None}, each
        blocking until its result is there.
      workloads: the workloads by name.
    """
    parts: dict = {}

    def answer(command):
        key = (command["workload"], command["rows"])
        if key not in parts:
            parts.clear()  # the models of one workload at a time
            parts[key] = make(workloads[key[0]], *tokens(workloads[key[0]], key[1]))
        run, first = parts[key].get(command["part"]), None
        if run is None:
            return {"missing": command["part"]}
        if not isinstance(run, _Warm):
            first = timed(run)
            run = parts[key][command["part"]] = _Warm(run)
            # What the C library kept of memory that compiling freed is no part's own.
            ctypes.CDLL(None).malloc_trim(0)
        elif command["runs"]:
            run()  # caches and pages were the other participants' meanwhile
        reset_peak()
        seconds = [timed(run) for _ in range(command["runs"])]
        return {"first_seconds": first, "seconds": seconds, "peak_bytes": peak_bytes()}

    answer_commands(answer)


class _Warm:
    """A part that has run once."""

    def __init__(self, run):
        self.run = run

    def __call__(self):
        self.run()


def tokens(work: Workload, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random full prompts and outputs, the same in every worker."""
    generator = np.random.default_rng(0)
    return tuple(
        generator.integers(*_USED_IDS, (rows, length)).astype(np.int32)
        for length in (work.source, work.target)
    )


def reset_peak() -> None:
    """Resets the measurement of the peak resident size (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """Returns the peak resident size since then in bytes."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def timed(run: Callable[[], object]) -> float:
    """Runs something, and returns its seconds."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
