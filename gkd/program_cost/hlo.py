"""Parses the text of a compiled program (XLA's HLO): computations, instructions and shapes."""

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
      space: memory space: 0 is main memory (HBM), others are on the chip (TPU: 1 is VMEM).
      stored: elements including the padding of a TPU's tiled layout: 6 heads in the lanes of an
        (8, 128) tile take the room of 128.
    """

    dtype: str
    dimensions: tuple[int, ...]
    space: int
    stored: int

    @property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> float:
        """Size in bytes, without padding."""
        return self.elements * _bits(self.dtype) / 8

    @property
    def stored_bytes(self) -> float:
        """Size in bytes in memory, including the padding of its layout."""
        return self.stored * _bits(self.dtype) / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction, which is one line of a computation.

    Attributes:
      name, opcode: name and operation as printed.
      shape: arrays of the result; more than one for a tuple (nested tuples are flattened).
      parts: the same arrays grouped by element of the tuple; None for an array.
      operands: names of the operands, instructions of the same computation.
      literal: text between the parentheses, for constants and parameters.
      attributes: rest of the line.
      is_root: true for the computation's result.
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
        """Name of its operation in the traced program; its own name if the text has none."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match.group(1) if match else self.name

    def called(self, *keys: str) -> tuple[str, ...]:
        """Names the computations that the instruction calls.

        Args:
          keys: names of attributes: 'body', 'calls', …

        Returns:
          Names of the computations, in the order of the keys.
        """
        names = []
        for key in keys:
            match = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
            if match:
                names += [name.strip("{}% ") for name in match.group(1).split(",")]
        return tuple(names)


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
        """Returns the operand of an instruction at an index."""
        return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole program: its computations by name, the entry, and its number of devices."""

    computations: dict[str, Computation]
    entry: Computation
    devices: int


def parse(text: str) -> Program:
    """Parses the text that `jax.stages.Compiled.as_text` returns.

    Args:
      text: HLO before or after optimisation, for any backend.

    Returns:
      The parsed program.

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
    """Parses the arrays of a printed shape; for a tuple, all of them in order.

    >>> [(array.dtype, array.dimensions, array.bytes) for array in arrays("(f32[2,3], bf16[4])")]
    [('f32', (2, 3), 24.0), ('bf16', (4,), 8.0)]
    """
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        dimensions = tuple(int(size.strip("<= ")) for size in sizes.split(",") if size)
        space = re.search(r"S\((\d+)\)", layout)
        space = int(space.group(1)) if space else 0
        found.append(Array(dtype, dimensions, space, _stored(dimensions, layout)))
    return tuple(found)


def _stored(dimensions, layout):
    """Elements including the padding of a layout '1,0:T(8,128)(2,1)': minor axes, then tiles."""
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
    match = re.match(r"[a-z]+(\d+)", dtype)
    if not match:
        raise ValueError(f"the program has arrays of type {dtype!r}, whose size is not known")
    return int(match.group(1))


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
        name=name,
        opcode=opcode,
        shape=arrays(shape),
        parts=_parts(shape),
        operands=operands,
        literal=literal,
        attributes=rest[closing + 1 :],
        is_root=bool(is_root),
    )


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
    """Index at which the parenthesis that opens `text` closes."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in the program's text: {text[:80]!r}")
