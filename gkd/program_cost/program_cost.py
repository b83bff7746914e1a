"""What one execution of a compiled program costs, every loop counted as often as it runs."""

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
      source: where in the traced program it comes from.
      bound: trips at most, as its condition says; None where that cannot be read.
      stops_early: whether it may end before (a sampling loop whose rows have all ended).
      trips: how often it was counted, each time it is reached.
    """

    source: str
    bound: int | None
    stops_early: bool
    trips: float


@dataclasses.dataclass(frozen=True)
class Part:
    """One instruction that runs by itself (a fusion, a copy, …), over all of its executions.

    Attributes:
      opcode, source: what it is, and where in the traced program it comes from.
      loop: the source of the innermost loop around it, '' outside of loops: a TPU's prefetching
        copies have no other sign of what they serve.
      count: executions.
      flops, multiplier_flops, elementwise, bytes: as in `ProgramCost`.
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
    """What one chip does in one execution of a program.

    Attributes:
      parts: instruction by instruction.
      collectives: the exchanges between chips.
      loops: how often each loop was counted.
    """

    parts: tuple[Part, ...]
    collectives: tuple[Collective, ...]
    loops: tuple[Loop, ...]

    @property
    def flops(self) -> float:
        """Multiplications and additions of matrix products, also of those written as sums."""
        return math.fsum(part.flops for part in self.parts)

    @property
    def multiplier_flops(self) -> float:
        """Of dots and convolutions, times the bfloat16 passes that a TPU takes for float32."""
        return math.fsum(part.multiplier_flops for part in self.parts)

    @property
    def elementwise(self) -> float:
        """Operations outside of matrix products, roughly."""
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
            one.count * one.wire_bytes
            for one in self.collectives
            if one.between_slices == between_slices
        )

    def by_kind(self, between_slices: bool = False) -> dict[str, tuple[float, float]]:
        """Collectives in a slice, or between slices, by kind: executions, bytes of all of them."""
        kinds: dict[str, tuple[float, float]] = {}
        for one in self.collectives:
            if one.between_slices == between_slices:
                count, size = kinds.get(one.kind, (0.0, 0.0))
                kinds[one.kind] = (count + one.count, size + one.count * one.bytes)
        return kinds


def program_cost(
    text: str,
    *,
    expected_share: float | Callable[[Loop], float] = 1.0,
    default_trips: int | None = None,
) -> ProgramCost:
    """Counts a compiled program; XLA's own `cost_analysis` counts the body of a loop once.

    A loop's body is multiplied by its trips and its condition by one more, a conditional costs its
    dearest branch. FLOPs are those of matrix products; see `ProgramCost` for the rest.

    Args:
      text: `Compiled.as_text()`; of one chip, where the program is split over several.
      expected_share: how much of its bound a loop that may stop early runs, a number in [0, 1] or
        a function of the `Loop` (expected length of an output ÷ greatest). 1 is the upper bound.
      default_trips: counted for a loop whose condition does not say; None refuses it.

    Returns:
      The cost.

    Raises:
      ValueError: a loop's trips cannot be read, or an instruction's operations.
    """
    counter = _Counter(hlo.parse(text), expected_share, default_trips)
    counter.walk(counter.program.entry, 1.0)
    return ProgramCost(tuple(counter.parts), tuple(counter.collectives), tuple(counter.loops))


class _Counter:
    """Walks the computations that run, and collects."""

    def __init__(self, program: Program, expected_share, default_trips):
        self.program = program
        self.parts: list[Part] = []
        self.collectives: list[Collective] = []
        self.loops: list[Loop] = []
        self._share, self._default = expected_share, default_trips

    def walk(self, computation, executions: float, arguments: Any = (), around: str = "") -> None:
        """Counts a computation that runs so often with these arguments, in the loop `around`."""
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                self._loop(computation, instruction, executions, arguments)
            elif instruction.opcode == "conditional":
                self._dearest(instruction, executions, around)
            elif instruction.opcode in ("call", "async-start"):
                given = arguments_of_call(self.program, computation, instruction, arguments)
                for name in instruction.called("to_apply", "calls"):
                    self.walk(self.program.computations[name], executions, given, around)
            elif instruction.opcode not in _ASYNC_ENDS:
                self._one(computation, instruction, executions, around)

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

    def _dearest(self, instruction, executions, around):
        names = instruction.called("branch_computations", "true_computation", "false_computation")
        tried = []
        for name in names:
            branch = _Counter(self.program, self._share, self._default)
            branch.walk(self.program.computations[name], executions, (), around)
            work = sum(p.flops for p in branch.parts), sum(p.bytes for p in branch.parts)
            tried.append((work, branch))
        _, dearest = max(tried, key=lambda pair: pair[0])
        self.parts += dearest.parts
        self.collectives += dearest.collectives
        self.loops += dearest.loops

    def _one(self, computation, instruction, executions, around):
        flops, multiplier, elementwise = self._operations(
            computation, instruction, executions, around
        )
        moved = bytes_accessed(self.program, computation, instruction)
        if flops or elementwise or moved:
            self.parts.append(
                Part(
                    instruction.opcode,
                    instruction.source,
                    around,
                    executions,
                    executions * flops,
                    executions * multiplier,
                    executions * elementwise,
                    executions * moved,
                )  # fmt: skip
            )

    def _operations(self, computation, instruction: Instruction, executions, around):
        """(FLOPs, with passes, elementwise) of one execution; collectives are noted on the way."""
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
    """Main memory of one chip while a program runs, in bytes.

    Attributes:
      arguments, outputs: of the program; `aliased` of the outputs reuse donated arguments.
      temporaries: what it needs in between.
      peak: the most that is in use at once, arguments and outputs too.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    peak: int


def program_memory(compiled: Any) -> ProgramMemory:
    """The memory of a compiled program.

    Args:
      compiled: `jax.stages.Compiled`.

    Returns:
      What `Compiled.memory_analysis` says. Where its peak is none, or less than the temporaries (a
      CPU's), all buffers together. Temporaries may reuse donated arguments: a TPU's peak is less.
    """
    found = compiled.memory_analysis()
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    aliased, temporaries = found.alias_size_in_bytes, found.temp_size_in_bytes
    together = arguments + outputs - aliased + temporaries
    peak = getattr(found, "peak_memory_in_bytes", 0)
    if peak < max(arguments, temporaries):
        peak = together
    return ProgramMemory(arguments, outputs, aliased, temporaries, peak)
