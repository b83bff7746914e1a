"""Ranks the meshes and numbers of microbatches that divide a run's batch, by compiling each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gkd.errors import IndivisibleBatch, InvalidValue
from gkd.plan import report_lines
from gkd.plan.program_report import whole_step
from gkd.plan.programs import Planned, step_programs
from gkd.train.step_program import StepProgram

WIDEST = 16  # greatest size of the model axis, and greatest number of microbatches


def search_meshes(
    trace: Callable[..., StepProgram],
    chips: int,
    slices: int,
    report: Callable[[StepProgram, Planned], dict[str, Any]],
    say: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
) -> None:
    """Compiles every candidate, prints and saves each result at once, and ranks all of them.

    Candidates that do not fit or do not compile are results too.

    Args:
      trace: function of (model_parallelism, microbatches) to the run's step program.
      chips: number of chips of the topology.
      slices: number of slices of the topology; the model axis stays inside a slice.
      report: function of a label, a step program and one of its programs to the record of
        `program_report.facts`.
      say: function that prints a line.
      save: function that saves the records of all candidates, the best first.

    Raises:
      ValueError: no candidate divides the batch, or none compiles.
    """
    candidates: list[dict[str, Any]] = []
    for given, program in _divisible(trace, chips // slices):
        estimate = {**given, "data": chips // given["model_parallelism"]}
        try:
            estimate |= _step(program, report, given)
        except Exception as error:  # compilers raise many classes; other candidates may compile
            estimate |= {"fits": False, "seconds": None, "failed": _one_line(error)}
        candidates.append(estimate)
        candidates.sort(key=_rank)
        say(report_lines.candidate(estimate))
        save({"candidates": candidates})
    if not candidates:
        raise InvalidValue(
            "no mesh and number of microbatches divides the batch: change BATCH_SIZE"
        )
    if all("failed" in estimate for estimate in candidates):
        raise InvalidValue(f"no candidate compiles; the first: {candidates[0]['failed']}")
    say("\n".join(_ranking(candidates)))


def _divisible(trace, slice_chips) -> Iterator[tuple[dict[str, int], StepProgram]]:
    """Yields the settings that divide the batch, with their step programs."""
    axes = [size for size in range(1, min(slice_chips, WIDEST) + 1) if slice_chips % size == 0]
    for model, microbatches in itertools.product(axes, (1, 2, 4, 8, WIDEST)):
        given = {"model_parallelism": model, "microbatches": microbatches}
        try:
            yield given, trace(**given)
        except IndivisibleBatch:
            continue


def _step(program, report, given) -> dict[str, Any]:
    """The record of the step; for two programs, the larger memory and the sum of both times."""
    setting = ", ".join(f"{name}={value}" for name, value in given.items())
    programs = step_programs(program).items()
    parts = [report(f"{label} ({setting})", program, planned) for label, planned in programs]
    return whole_step(parts)


def _rank(estimate: Mapping[str, Any]):
    """Sort key: candidates that fit by time, then others by memory, then those that fail."""
    seconds = estimate["seconds"]
    known = "failed" not in estimate
    if known and estimate["fits"]:
        return 0, seconds is None, seconds or 0.0
    return (1, False, estimate["peak_bytes"]) if known else (2, False, 0.0)


def _ranking(candidates) -> Iterator[str]:
    yield "\nranked:"
    for number, estimate in enumerate(candidates, 1):
        yield f"{number:3}. {report_lines.candidate(estimate)}"
    first = candidates[0]
    if not first["fits"]:
        yield "no candidate fits; for the first:"
        yield from (f"  change: {change}" for change in first["advice"])


def _one_line(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}"
