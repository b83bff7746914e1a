"""A run's programs compiled and counted: memory, FLOPs, bytes, exchanges, and seconds by part."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

from gkd.distill.train_step import Part
from gkd.jobs import generation
from gkd.jobs.decoding import Decoding
from gkd.jobs.plan_flops import UPDATE
from gkd.jobs.step_program import StepProgram
from gkd.parallel.program_cost import ProgramCost, ProgramMemory, program_cost, program_memory
from gkd.parallel.roofline import Chip, roofline

_NEEDED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) (?:of )?hbm", re.IGNORECASE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One compiled program on one chip.

    Attributes:
      memory: None where the compiler ran out of it.
      needed: bytes, where it did.
      cost: None likewise.
      seconds: of the roofline by part of the step.
      compile_seconds: how long the compiler took.
    """

    memory: ProgramMemory | None
    needed: float | None
    cost: ProgramCost | None
    seconds: dict[str, float]
    compile_seconds: float


def lowered(program: StepProgram, kind: str) -> dict[str, Callable[[], Any]]:
    """Functions that lower the programs of a kind, 'step' or 'evaluation', by name."""
    if kind == "step":
        return program.lower()
    source = program.batch.encoder_input_tokens.shape[1]
    target = program.batch.decoder_target_tokens.shape[1]
    generator = generation.Generator(
        program.learner, program.mesh, program.rules, program.valid, Decoding(max_length=target),
        (source,), program.evaluation_rows,
    )  # fmt: skip
    return {kind: lambda: generator.lower(source)}


def measure(lower: Callable[[], Any], chip: Chip, expected_share: float | int) -> Measured:
    """Compiles a program and counts it.

    Args:
      lower: lowers it.
      chip: what it is compiled for.
      expected_share: how much of its bound a loop that may stop early runs.
    """
    begin = time.perf_counter()
    try:
        compiled = lower().compile()
    except Exception as error:  # jaxlib's own kind; only its text tells running out of memory
        found = _NEEDED.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not found:
            raise
        needed = float(found.group(1)) * _UNITS[found.group(2).upper()]
        return Measured(None, needed, None, {}, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    cost = program_cost(compiled.as_text(), expected_share=expected_share)
    times = {name: roofline(part, chip).seconds for name, part in parts(cost).items()}
    return Measured(program_memory(compiled), None, cost, times, seconds)


def parts(cost: ProgramCost) -> dict[str, ProgramCost]:
    """The cost of a step, part by part: what `Part` names, and 'update', the rest."""

    def part_of(one):
        source = f"{one.source} {getattr(one, 'loop', '')}"
        return next((name.value for name in Part if name in source), UPDATE)

    return {
        name: dataclasses.replace(
            cost,
            parts=tuple(one for one in cost.parts if part_of(one) == name),
            collectives=tuple(one for one in cost.collectives if part_of(one) == name),
        )
        for name in (*(part.value for part in Part), UPDATE)
    }
