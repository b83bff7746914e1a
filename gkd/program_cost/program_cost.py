"""Counts the cost of one execution of a compiled program, every loop as often as it runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from gkd.program_cost import hlo
from gkd.program_cost.arithmetic_cost import (
    elementwise_operations,
    matrix_flops,
    multiplier_passes,
)
from gkd.program_cost.collectives import Collective, collective
from gkd.program_cost.hlo import Instruction, Program
from gkd.program_cost.memory_cost import bytes_accessed
from gkd.program_cost.trip_counts import arguments_of_call, loop_arguments, loop_bound

_ASYNC_ENDS = ("async-update", "async-done")


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of the program.

    Attributes:
      source: name of its operation in the traced program.
      bound: greatest number of trips according to its condition; None if that cannot be read.
      stops_early: true if it may end earlier (a sampling loop whose rows have all ended).
      trips: number of trips that were counted per execution of the loop.
    """

    source: str
    bound: int | None
    stops_early: bool
    trips: float


@dataclasses.dataclass(frozen=True)
class Part:
    """The cost of one unfused instruction (a fusion, a copy, …) over all of its executions.

    Attributes:
      opcode, source: its operation, and the name of that operation in the traced program.
      loop: source of the innermost loop around it, '' outside of loops: the only hint at the
        purpose of a TPU's prefetching copies.
      count: number of executions.
      flops, multiplier_flops, elementwise, bytes: totals over all executions, see `ProgramCost`.
    """

    opcode: str
    source: str
    loop: str
    count: float
    flops: float
    multiplier_flops: float
    elementwise: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """The work of one chip in one execution of a program.

    Attributes:
      parts: costs of the instructions.
      collectives: transfers between chips.
      loops: the loops, with the number of trips that were counted.
    """

    parts: tuple[Part, ...]
    collectives: tuple[Collective, ...]
    loops: tuple[Loop, ...]

    @property
    def flops(self) -> float:
        """FLOPs of matrix products, including those that the compiler rewrote as sums."""
        return math.fsum(part.flops for part in self.parts)

    @property
    def multiplier_flops(self) -> float:
        """FLOPs of dots and convolutions times the bfloat16 passes that a TPU needs for float32."""
        return math.fsum(part.multiplier_flops for part in self.parts)

    @property
    def elementwise(self) -> float:
        """Approximate number of operations outside of matrix products."""
        return math.fsum(part.elementwise for part in self.parts)

    @property
    def bytes(self) -> float:
        """Bytes read from and written to main memory."""
        return math.fsum(part.bytes for part in self.parts)

    @property
    def wire_bytes(self) -> float:
        """Bytes that one chip sends to others of its slice."""
        return self._sent(between_slices=False)

    @property
    def dcn_bytes(self) -> float:
        """Bytes that one chip sends to other slices."""
        return self._sent(between_slices=True)

    def _sent(self, between_slices):
        return math.fsum(
            transfer.count * transfer.wire_bytes
            for transfer in self.collectives
            if transfer.between_slices == between_slices
        )

    def by_kind(self, between_slices: bool = False) -> dict[str, tuple[float, float]]:
        """Sums the collectives within a slice, or between slices, by kind.

        Returns:
          Executions and total bytes of every kind.
        """
        kinds: dict[str, tuple[float, float]] = {}
        for transfer in self.collectives:
            if transfer.between_slices == between_slices:
                count, size = kinds.get(transfer.kind, (0.0, 0.0))
                total = size + transfer.count * transfer.bytes
                kinds[transfer.kind] = (count + transfer.count, total)
        return kinds


def program_cost(
    text: str,
    *,
    expected_share: float | Callable[[Loop], float] = 1.0,
    default_trips: int | None = None,
) -> ProgramCost:
    """Counts a compiled program; XLA's own `cost_analysis` counts the body of a loop once.

    The body of a loop is multiplied by its trips and its condition by one more, and a conditional
    costs its most expensive branch. FLOPs are those of matrix products; see `ProgramCost`.

    Args:
      text: result of `Compiled.as_text()`; for a partitioned program, that of one chip.
      expected_share: share of its greatest number of trips that a loop runs if it may stop early,
        a number in [0, 1] or a function of the `Loop` (expected ÷ greatest length of a
        completion). 1 gives the upper bound.
      default_trips: number of trips of a loop whose condition cannot be read; None refuses it.

    Returns:
      The cost per chip.

    Raises:
      ValueError: the trips of a loop or the operations of an instruction cannot be read.
    """
    counter = _Counter(hlo.parse(text), expected_share, default_trips)
    counter.walk(counter.program.entry, 1.0)
    return ProgramCost(tuple(counter.parts), tuple(counter.collectives), tuple(counter.loops))


class _Counter:
    """Walks the executed computations, and collects their costs."""

    def __init__(self, program: Program, expected_share, default_trips):
        self.program = program
        self.parts: list[Part] = []
        self.collectives: list[Collective] = []
        self.loops: list[Loop] = []
        self._share, self._default = expected_share, default_trips

    def walk(self, computation, executions: float, arguments: Any = (), around: str = "") -> None:
        """Counts a computation with its number of executions, inside the loop `around`."""
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                self._loop(computation, instruction, executions, arguments)
            elif instruction.opcode == "conditional":
                self._conditional(instruction, executions, around)
            elif instruction.opcode in ("call", "async-start"):
                given = arguments_of_call(self.program, computation, instruction, arguments)
                for name in instruction.called("to_apply", "calls"):
                    self.walk(self.program.computations[name], executions, given, around)
            elif instruction.opcode not in _ASYNC_ENDS:
                self._instruction(computation, instruction, executions, around)

    def _loop(self, computation, instruction, executions, arguments):
        bound = loop_bound(self.program, computation, instruction, arguments)
        if bound is None and self._default is None:
            raise ValueError(
                f"the trips of the loop {instruction.name} ({instruction.source}) cannot be read "
                "from its condition: pass default_trips"
            )
        if bound is None:
            loop = Loop(instruction.source, None, True, float(self._default))
        else:
            loop = Loop(instruction.source, bound.trips, bound.stops_early, float(bound.trips))
            if bound.stops_early:
                share = self._share(loop) if callable(self._share) else self._share
                loop = dataclasses.replace(loop, trips=share * bound.trips)
        self.loops.append(loop)
        inside = loop_arguments(self.program, computation, instruction, arguments)
        for key, trips in (("body", loop.trips), ("condition", loop.trips + 1)):
            for name in instruction.called(key):
                inner = self.program.computations[name]
                self.walk(inner, executions * trips, inside, instruction.source)

    def _conditional(self, instruction, executions, around):
        names = instruction.called("branch_computations", "true_computation", "false_computation")
        tried = []
        for name in names:
            branch = _Counter(self.program, self._share, self._default)
            branch.walk(self.program.computations[name], executions, (), around)
            work = sum(p.flops for p in branch.parts), sum(p.bytes for p in branch.parts)
            tried.append((work, branch))
        _, most_expensive = max(tried, key=lambda pair: pair[0])
        self.parts += most_expensive.parts
        self.collectives += most_expensive.collectives
        self.loops += most_expensive.loops

    def _instruction(self, computation, instruction, executions, around):
        flops, multiplier, elementwise = self._operations(
            computation, instruction, executions, around
        )
        moved = bytes_accessed(self.program, computation, instruction)
        if flops or elementwise or moved:
            self.parts.append(
                Part(
                    opcode=instruction.opcode,
                    source=instruction.source,
                    loop=around,
                    count=executions,
                    flops=executions * flops,
                    multiplier_flops=executions * multiplier,
                    elementwise=executions * elementwise,
                    bytes=executions * moved,
                )  # fmt: skip
            )

    def _operations(self, computation, instruction: Instruction, executions, around):
        """(FLOPs, multiplier FLOPs, elementwise) of one execution; also records collectives."""
        found_collective = collective(self.program, computation, instruction, executions, around)
        if found_collective is not None:
            self.collectives.append(found_collective)
        flops = matrix_flops(computation, instruction)
        passes = multiplier_passes(computation, instruction) if flops else 1
        total = [flops, flops * passes, elementwise_operations(computation, instruction)]
        if instruction.opcode in ("fusion", "call"):
            for name in instruction.called("calls", "to_apply"):
                inner = self.program.computations[name]
                for fused in inner.instructions.values():
                    counted = self._operations(inner, fused, executions, around)
                    total = [a + b for a, b in zip(total, counted, strict=True)]
        return tuple(total)


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """Main memory (HBM) of one chip while a program runs, in bytes.

    Attributes:
      arguments, outputs: sizes of the program's arguments and outputs.
      aliased: bytes of the outputs that reuse donated arguments.
      temporaries: size of the buffers for intermediate results.
      peak: greatest amount in use at the same time, arguments and outputs included.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int


def program_memory(compiled: Any) -> ProgramMemory:
    """Reads the memory of a compiled program.

    Args:
      compiled: a `jax.stages.Compiled`.

    Returns:
      The sizes that `Compiled.memory_analysis` reports. Where it reports no peak, or one below the
      temporaries (CPU), the peak is the sum of all buffers. Temporaries may reuse donated
      arguments, so that the peak of a TPU is below that sum.
    """
    analysis = compiled.memory_analysis()
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    aliased, temporaries = analysis.alias_size_in_bytes, analysis.temp_size_in_bytes
    together = arguments + outputs - aliased + temporaries
    peak = getattr(analysis, "peak_memory_in_bytes", 0)
    if peak < max(arguments, temporaries):
        peak = together
    return ProgramMemory(arguments, outputs, aliased, temporaries, peak)
