"""Reads the text of a compiled program (XLA's HLO) into computations, instructions and shapes."""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "tf32": 32, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
      dtype: 'f32', 'bf16', 's32', …
      dimensions: sizes of its axes.
      space: the memory it lives in: 0 is main memory (HBM), else on the chip (TPU: 1 is VMEM).
      stored: numbers that it takes the room of, tiles of a TPU's layout filled up: 6 heads in the
        lanes of an (8, 128) tile take the room of 128.
    """

    dtype: str
    dimensions: tuple[int, ...]
    space: int
    stored: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> float:
        """Bytes of the numbers alone."""
        return self.elements * _bits(self.dtype) / 8

    @property
    def stored_bytes(self) -> float:
        """Bytes that it takes in memory, with what fills up its tiles."""
        return self.stored * _bits(self.dtype) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as printed.
      shape: its arrays; more than one where it is a tuple (nested tuples are flat here).
      parts: the same, by the elements of the tuple; None where it is an array.
      operands: names of instructions of the same computation.
      literal: what stands between the parentheses, for constants and parameters.
      attributes: the rest of the line.
      is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    shape: tuple[Array, ...]
    parts: tuple[tuple[Array, ...], ...] | None
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    @property
    def source(self) -> str:
        """Where in the traced program it comes from, as far as the text says."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else self.name

    def called(self, *keys: str) -> tuple[str, ...]:
        """Names of the computations under these attributes, in order: 'body', 'calls', …"""
        found = []
        for key in keys:
            match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
            if match:
                found += [name.strip("{}% ") for name in match.group(1).split(",")]
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program: its instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]
    root: Instruction
    parameters: tuple[Instruction, ...]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that take each instruction as an operand."""
        users = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    def operand(self, instruction: Instruction, index: int = 0) -> Instruction:
        """The instruction that is an operand of another."""
        return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole program: computations by name, its entry, and over how many devices it is split."""

    computations: dict[str, Computation]
    entry: Computation
    devices: int


def parse(text: str) -> Program:
    """Reads what `jax.stages.Compiled.as_text` returns.

    Args:
      text: HLO, before or after optimisation, for any backend.

    Returns:
      The program.

    Raises:
      ValueError: the text is not HLO.
    """
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name, lines = header.group(2), []
            entry = name if header.group(1) else entry
        elif line.startswith("}") and name is not None:
            computations[name] = _computation(name, lines)
            name = None
        elif name is not None:
            lines.append(line)
    if entry is None:
        raise ValueError(
            "the text has no ENTRY computation: pass what `Compiled.as_text()` returns"
        )
    sizes = [re.search(rf"\b{key}=(\d+)", text) for key in ("num_partitions", "replica_count")]
    devices = math.prod(int(size.group(1)) for size in sizes if size)
    return Program(computations, computations[entry], devices)


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a shape as printed, a tuple's in order."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        dimensions = tuple(int(size.strip("<= ")) for size in sizes.split(",") if size)
        space = re.search(r"S\((\d+)\)", layout)
        space = int(space.group(1)) if space else 0
        found.append(Array(dtype, dimensions, space, _stored(dimensions, layout)))
    return tuple(found)


def _stored(dimensions, layout):
    """Numbers with the padding of a layout '1,0:T(8,128)(2,1)': minor axes first, then tiles."""
    order, _, tiles = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if not tile or not dimensions:
        return math.prod(dimensions)
    physical = [dimensions[int(axis)] for axis in order.split(",")]
    for i, size in enumerate(reversed(tile.group(1).split(","))):
        if i < len(physical):
            physical[i] = -(-physical[i] // int(size)) * int(size)
    return math.prod(physical)


def _bits(dtype):
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    if not found:
        raise ValueError(f"the program has arrays of type {dtype!r}, whose size is not known")
    return int(found.group(1))


def _computation(name, lines):
    read = [_instruction(line) for line in lines]
    instructions = {instruction.name: instruction for instruction in read if instruction}
    roots = [instruction for instruction in instructions.values() if instruction.is_root]
    if len(roots) != 1:
        raise ValueError(f"computation {name} has {len(roots)} ROOT lines: this is not whole HLO")
    parameters = [i for i in instructions.values() if i.opcode == "parameter"]
    parameters.sort(key=lambda instruction: int(instruction.literal))
    return Computation(name, instructions, roots[0], tuple(parameters))


def _instruction(line):
    match = _INSTRUCTION.match(_COMMENT.sub("", line))
    if not match:
        return None
    is_root, name, rest = match.groups()
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = opening + _closing(rest[opening:])
    literal = rest[opening + 1 : closing]
    opcode = rest[:opening]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(literal))
    return Instruction(
        name, opcode, arrays(shape), _parts(shape), operands, literal, rest[closing + 1 :],
        bool(is_root),
    )  # fmt: skip


def _parts(shape):
    """The arrays of each element of a tuple's shape; None for an array."""
    if not shape.startswith("("):
        return None
    parts, depth, begin = [], 0, 1
    for i, character in enumerate(shape):
        depth += (character in "({[") - (character in ")}]")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(arrays(shape[begin:i]))
            begin = i + 1
    return tuple(parts) if shape != "()" else ()


def _closing(text):
    """Where the parenthesis that opens `text` closes."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in the program's text: {text[:80]!r}")
