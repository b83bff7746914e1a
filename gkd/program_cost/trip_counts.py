"""Reads the trip counts of a compiled program's loops from their conditions."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from gkd.program_cost.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_SAME = {
    "copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier",
}  # fmt: skip
_FLIPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "EQ": "EQ", "NE": "NE"}


@dataclasses.dataclass(frozen=True)
class Bound:
    """The number of trips of a loop.

    Attributes:
      trips: greatest number of trips; the exact number unless the loop may stop early.
      stops_early: true if another condition than the count can end it (all samples finished).
    """

    trips: int
    stops_early: bool


@dataclasses.dataclass(frozen=True)
class Value:
    """A scalar in symbols: element `element` of the loop's state plus `offset`.

    Without an element (None) it is the constant `offset`.
    """

    element: int | None
    offset: int


# Known values of a computation's parameters: a Value, None, or a list of those for a tuple.
Arguments = tuple[Any, ...]


def loop_bound(
    program: Program, computation: Computation, loop: Instruction, arguments: Arguments = ()
) -> Bound | None:
    """Reads the trip count of a `while`.

    XLA annotates the count on some backends. Otherwise the condition is read: comparisons, joined
    by AND, between a constant and an element of the state that grows by a constant.

    Args:
      program: the whole program.
      computation: the computation that contains the loop.
      loop: the `while` instruction.
      arguments: known values of that computation's parameters.

    Returns:
      The bound, or None if it cannot be read.
    """
    known = _KNOWN.search(loop.attributes)
    if known:
        return Bound(int(known.group(1)), False)
    (condition,) = (program.computations[name] for name in loop.called("condition"))
    (body,) = (program.computations[name] for name in loop.called("body"))
    symbols = ([Value(i, 0) for i in range(len(loop.parts or loop.shape))],)
    initial = computation.operand(loop)

    def start_of(index):
        return element(program, computation, initial, index, arguments)

    def after_a_trip(index):
        return element(program, body, body.root, index, symbols)

    counts = [
        _trips(direction, left, right, start_of, after_a_trip)
        for direction, left, right in _conjuncts(program, condition, condition.root, symbols)
    ]
    read = [count for count in counts if count is not None]
    return Bound(min(read), len(read) < len(counts)) if read else None


def loop_arguments(
    program: Program, computation: Computation, loop: Instruction, arguments: Arguments
) -> Arguments:
    """Finds the known values of the state inside a loop: constants that no trip changes.

    Args:
      program, computation, loop, arguments: as in `loop_bound`.

    Returns:
      Known values of the parameters of the loop's body.
    """
    (body,) = (program.computations[name] for name in loop.called("body"))
    symbols = ([Value(i, 0) for i in range(len(loop.parts or loop.shape))],)
    initial = computation.operand(loop)

    def constant(index):
        if element(program, body, body.root, index, symbols) != Value(index, 0):
            return None
        return element(program, computation, initial, index, arguments)

    scalars = [
        all(not array.dimensions for array in item) and len(item) == 1 for item in loop.parts or ()
    ]
    return ([constant(i) if scalar else None for i, scalar in enumerate(scalars)],)


def _conjuncts(program, computation, instruction, arguments):
    """The comparisons of a condition that must all hold: (direction, left, right), or Nones."""
    if instruction.opcode == "and":
        for index in (0, 1):
            operand = computation.operand(instruction, index)
            yield from _conjuncts(program, computation, operand, arguments)
    elif instruction.opcode in ("fusion", "call"):
        inner, given = _enter(program, computation, instruction, arguments)
        yield from _conjuncts(program, inner, inner.root, given)
    elif instruction.opcode in _SAME:
        operand = computation.operand(instruction)
        yield from _conjuncts(program, computation, operand, arguments)
    elif instruction.opcode == "compare":
        direction = re.search(r"direction=(\w+)", instruction.attributes).group(1)
        sides = [
            evaluate(program, computation, computation.operand(instruction, index), arguments)
            for index in (0, 1)
        ]
        yield direction, *sides
    else:
        yield None, None, None


def _trips(direction, left, right, start_of, after_a_trip):
    """Counts how often `left direction right` holds from the start on; None if unknown."""
    if left is None or right is None or direction is None:
        return None
    if left.element is None or after_a_trip(left.element) == Value(left.element, 0):
        # The counter is on the right.
        left, right, direction = right, left, _FLIPPED[direction]
    if left.element is None:
        return None
    moved, begin, end = after_a_trip(left.element), start_of(left.element), right
    if right.element is not None:
        unchanged = after_a_trip(right.element) == Value(right.element, 0)
        end = start_of(right.element) if unchanged else None
        end = end and dataclasses.replace(end, offset=end.offset + right.offset)
    known = moved is not None and moved.element == left.element
    if not known or any(v is None or v.element is not None for v in (begin, end)):
        return None
    return _count(direction, begin.offset + left.offset, end.offset, moved.offset)


def _count(direction, begin, end, step):
    """Trips of `for (i = begin; i direction end; i += step)`; None if it does not end."""
    if direction == "NE":
        ends = step != 0 and (end - begin) % step == 0 and (end - begin) // step >= 0
        return (end - begin) // step if ends else None
    if direction in ("GT", "GE"):
        direction, begin, end, step = _FLIPPED[direction], -begin, -end, -step
    if direction not in ("LT", "LE") or step <= 0:
        return None
    return max(0, math.ceil((end + (direction == "LE") - begin) / step))


def evaluate(
    program: Program, computation: Computation, instruction: Instruction, arguments: Arguments
) -> Any:
    """Evaluates an instruction as far as its text determines the result.

    Args:
      program: the whole program.
      computation: the computation that contains the instruction.
      instruction: any instruction.
      arguments: known values of that computation's parameters.

    Returns:
      A `Value`, a list of results for a tuple, or None if unknown.
    """
    opcode = instruction.opcode
    if not _may_count(instruction):
        return None
    if opcode == "constant":
        text = {"true": "1", "false": "0"}.get(instruction.literal, instruction.literal)
        return Value(None, int(text)) if re.fullmatch(r"-?\d+", text) else None
    if opcode == "parameter":
        index = int(instruction.literal)
        return arguments[index] if index < len(arguments) else None
    if opcode == "get-tuple-element":
        index = int(re.search(r"index=(\d+)", instruction.attributes).group(1))
        source = computation.operand(instruction)
        return element(program, computation, source, index, arguments)
    if opcode == "tuple":
        parts = [computation.instructions[name] for name in instruction.operands]
        return [evaluate(program, computation, part, arguments) for part in parts]
    if opcode in _SAME:
        return evaluate(program, computation, computation.operand(instruction), arguments)
    if opcode in ("fusion", "call") and instruction.parts is None:
        inner, given = _enter(program, computation, instruction, arguments)
        return evaluate(program, inner, inner.root, given)
    if opcode in ("add", "subtract") and not instruction.shape[0].dimensions:
        left, right = (
            evaluate(program, computation, computation.operand(instruction, index), arguments)
            for index in (0, 1)
        )
        return _sum(left, right, 1 if opcode == "add" else -1)
    return None


def _may_count(instruction):
    """Returns whether a result may be a loop's counter; those of a whole model take ages."""
    if instruction.parts is not None:
        return True
    (array,) = instruction.shape
    return math.prod(array.dimensions) == 1 and array.dtype[0] in "sup"  # s32, u32, pred


def element(
    program: Program,
    computation: Computation,
    instruction: Instruction,
    index: int,
    arguments: Arguments,
) -> Any:
    """Evaluates one element of an instruction whose result is a tuple.

    Args:
      program, computation, instruction, arguments: as in `evaluate`.
      index: index of the element.

    Returns:
      The result as in `evaluate`.
    """
    opcode = instruction.opcode
    if opcode == "tuple":
        return evaluate(program, computation, computation.operand(instruction, index), arguments)
    if opcode == "parameter":
        known = evaluate(program, computation, instruction, arguments)
        return known[index] if isinstance(known, list) and index < len(known) else None
    if opcode in ("fusion", "call"):
        inner, given = _enter(program, computation, instruction, arguments)
        return element(program, inner, inner.root, index, given)
    if opcode in _SAME:
        source = computation.operand(instruction)
        return element(program, computation, source, index, arguments)
    if opcode == "while":  # elements that no trip changes keep their initial values
        (body,) = (program.computations[name] for name in instruction.called("body"))
        symbols = ([Value(i, 0) for i in range(len(instruction.parts))],)
        if element(program, body, body.root, index, symbols) == Value(index, 0):
            source = computation.operand(instruction)
            return element(program, computation, source, index, arguments)
    return None


def arguments_of_call(
    program: Program, computation: Computation, call: Instruction, arguments: Arguments
) -> Arguments:
    """Evaluates the arguments of a call.

    Args:
      program, computation, arguments: as in `evaluate`.
      call: the instruction that calls a computation.

    Returns:
      Known values of the called computation's parameters.
    """
    operands = [computation.instructions[name] for name in call.operands]
    return tuple(evaluate(program, computation, operand, arguments) for operand in operands)


def _enter(program, computation, call, arguments):
    (name,) = call.called("calls", "to_apply")
    return program.computations[name], arguments_of_call(program, computation, call, arguments)


def _sum(left, right, sign):
    if left is None or right is None or isinstance(left, list) or isinstance(right, list):
        return None
    if right.element is not None and (left.element is not None or sign < 0):
        return None
    chosen = left.element if left.element is not None else right.element
    return Value(chosen, left.offset + sign * right.offset)
