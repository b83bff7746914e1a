"""Counts the bytes that single HLO instructions read from and write to main memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from gkd.program_cost.collectives import (
    COLLECTIVES,
    collective_results,
    continues_chain,
    is_chained,
)
from gkd.program_cost.hlo import Array, Computation, Instruction, Program

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "optimization-barrier", "add-dependency", "while", "conditional", "call",
    "async-start", "async-update", "async-done", "copy-done", "slice-done", "send-done",
    "recv-done",
    *(f"{name}-done" for name in COLLECTIVES),
}  # fmt: skip
_FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"}
_CHAIN_CALL = re.compile('custom_call_target="AsyncCollective(Start|Done)"')
_RENAMES = {"bitcast", "reshape"}
_SLICES = {"dynamic-slice", "slice", "gather"}


def bytes_accessed(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Counts the bytes that an unfused instruction reads from and writes to main memory (HBM).

    Each operand and result counts once. An array that is only sliced or gathered from counts with
    its slices, an array that is updated in place with the update. Arrays in memory on the chip (a
    TPU's VMEM) cost nothing, but copies between it and HBM do.

    Args:
      program: the whole program.
      computation: the computation that contains the instruction; not a fused one.
      instruction: any instruction.

    Returns:
      Bytes of one execution, including the padding of layouts.
    """
    if instruction.opcode in _FREE or _free_call(instruction):
        return 0.0
    return float(_moved(program, computation, instruction))


def _moved(program, computation, instruction):
    opcode = instruction.opcode
    operands = [computation.instructions[name] for name in dict.fromkeys(instruction.operands)]
    if opcode in ("copy-start", "slice-start"):
        to, source = instruction.parts[:2] if opcode == "copy-start" else instruction.parts[1::-1]
        return to[0].stored_bytes * ((to[0].space == 0) + (source[0].space == 0))
    if opcode in ("send", "recv"):
        return _main_bytes(instruction.parts[0])
    if opcode == "fusion":
        (name,) = instruction.called("calls")
        inner = program.computations[name]
        results = _split_result(inner, instruction)
        bytes_written = sum(_written(program, c, root, array) for c, root, array in results)
        return bytes_written + sum(
            _read(program, inner, inner.parameters[index])
            for index, operand in enumerate(instruction.operands)
            if _in_main(computation.instructions[operand].shape)
        )
    if opcode in _SLICES:
        (out,) = instruction.shape
        indices = operands[1:] if opcode == "gather" else []
        read = out.stored_bytes * _in_main(operands[0].shape)
        return read + _main_bytes(instruction.shape) + sum(_main_bytes(i.shape) for i in indices)
    if opcode in ("dynamic-update-slice", "scatter"):
        update = computation.operand(instruction, 1 if opcode != "scatter" else -1)
        # A scatter adds to the array's values, and therefore reads them too.
        return _main_bytes(update.shape) + update.shape[0].stored_bytes * (
            _in_main(instruction.shape) * (2 if opcode == "scatter" else 1)
        )
    if opcode.removesuffix("-start") in COLLECTIVES:
        results = collective_results(instruction)
        return sum(_main_bytes(i.shape) for i in operands) + _main_bytes(results)
    return sum(_main_bytes(i.shape) for i in operands) + _main_bytes(instruction.shape)


def _free_call(instruction):
    if instruction.opcode != "custom-call":
        return False
    target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return target is not None and target.group(1) in _FREE_CALLS


def _in_main(shape: Iterable[Array]) -> bool:
    return any(array.space == 0 for array in shape)


def _main_bytes(shape: Iterable[Array]) -> float:
    return math.fsum(array.stored_bytes for array in shape if array.space == 0)


def _read(program, computation, value):
    """Bytes read from a parameter of a fused computation, directly or through renamings."""
    full = sum(array.stored_bytes for array in value.shape)
    total = 0.0
    for user in computation.users[value.name]:
        for index, name in enumerate(user.operands):
            if name == value.name:
                total += _read_by(program, computation, user, index, full)
    if not computation.users[value.name]:
        return full if value.is_root else 0.0
    if _is_handed_on(computation, value):
        return 0.0
    return min(total, full)


def _read_by(program, computation, user, index, full):
    if user.opcode in _RENAMES and not user.is_root:
        return _read(program, computation, user)
    if user.opcode in _SLICES and index == 0:
        return sum(array.stored_bytes for array in user.shape)
    if user.opcode == "dynamic-update-slice" and index == 0 and _leaves(computation, user):
        return 0.0
    if user.opcode == "scatter" and index == 0 and _leaves(computation, user):
        return sum(array.stored_bytes for array in computation.operand(user, -1).shape)
    if user.opcode == "fusion":
        (name,) = user.called("calls")
        inner = program.computations[name]
        return _read(program, inner, inner.parameters[index])
    return full


def _leaves(computation, value):
    """True if a value is only used as the computation's result, alone or in a tuple."""
    if value.is_root:
        return True
    users = computation.users[value.name]
    passes = all(user.opcode in _RENAMES | {"tuple"} for user in users)
    return bool(users) and passes and all(_leaves(computation, user) for user in users)


def _is_handed_on(computation, value):
    """True if a parameter is a buffer of a chained collective that began in an earlier fusion."""
    pieces = [piece for piece in computation.instructions.values() if is_chained(piece)]
    if not any(continues_chain(computation, piece) for piece in pieces):
        return False
    return all(
        user.opcode == "tuple" or is_chained(user) or _CHAIN_CALL.search(user.attributes)
        for user in computation.users[value.name]
    )


def _split_result(inner, fusion):
    """(computation, instruction, array in the fusion's layout) for every array of the result."""
    if _CHAIN_CALL.search(inner.root.attributes):
        return _chain_result(inner, fusion)
    if inner.root.opcode != "tuple":
        return [(inner, inner.root, array) for array in fusion.shape]
    roots = [inner.instructions[name] for name in inner.root.operands]
    return list(zip([inner] * len(roots), roots, fusion.shape, strict=True))


def _chain_result(inner, fusion):
    """The arrays that a chained collective writes: the result, at its first piece."""
    if "AsyncCollectiveDone" in inner.root.attributes:
        return []
    piece = inner.operand(inner.root)
    arrays = fusion.shape[len(piece.operands) :]  # the operands come first, as they are
    return [(inner, inner.root, array) for array in arrays]


def _written(program, computation, value, array):
    """Bytes written to one array of a fusion's result."""
    if array.space != 0:
        return 0.0
    if is_chained(value):  # counted where it starts
        return 0.0
    if value.opcode == "parameter" and _is_handed_on(computation, value):
        return 0.0
    if value.opcode in _RENAMES:
        return _written(program, computation, computation.operand(value), array)
    if value.opcode == "fusion" and value.parts is None:
        (name,) = value.called("calls")
        inner = program.computations[name]
        return _written(program, inner, inner.root, array)
    if value.opcode in ("dynamic-update-slice", "scatter"):
        update = computation.operand(value, 1 if value.opcode != "scatter" else -1)
        return sum(array.stored_bytes for array in update.shape)
    return array.stored_bytes
