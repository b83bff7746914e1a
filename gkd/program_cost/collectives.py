"""Counts the bytes that collectives move between chips of a slice, and between slices (DCN)."""

from __future__ import annotations

import dataclasses
import re

from gkd.program_cost.hlo import Array, Computation, Instruction, Program

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
# libtpu writes collectives between slices as transfers to a runtime on the hosts.
_RUNTIME = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
_TRANSFERS = {
    "ALL_GATHER": "all-gather", "ALL_REDUCE": "all-reduce", "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: 'all-reduce', 'all-gather', …
      count: number of executions.
      bytes: size of the whole array on one chip, the larger of operand and result.
      wire_bytes: bytes that one chip sends per execution, along a ring: (n−1)/n of the bytes for
        gathers, scatters and all-to-all among n, twice that for an all-reduce, all of them for a
        permutation.
      among: n, the number of chips, or of slices.
      between_slices: true if it crosses the data-centre network (DCN).
      source: name of its operation in the traced program.
      loop: source of the innermost loop around it, '' outside of loops.
    """

    kind: str
    count: float
    bytes: float
    wire_bytes: float
    among: int
    between_slices: bool
    source: str
    loop: str = ""


def collective(
    program: Program,
    computation: Computation,
    instruction: Instruction,
    count: float,
    loop: str = "",
) -> Collective | None:
    """Reads an instruction as a collective; of an asynchronous pair or chain, the start counts.

    Args:
      program: the whole program.
      computation: the computation that contains the instruction.
      instruction: any instruction.
      count: number of executions.
      loop: source of the innermost loop around it.

    Returns:
      The collective, or None for other instructions.

    Raises:
      ValueError: the participants of a collective cannot be read.
    """
    if instruction.opcode == "send" and _RUNTIME in instruction.attributes:
        return _between_slices(computation, instruction, count, loop)
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or continues_chain(computation, instruction):
        return None
    operands = [computation.instructions[name].shape for name in instruction.operands]
    sent = sum(array.bytes for shape in operands for array in shape)
    size = float(max(sent, sum(array.bytes for array in collective_results(instruction))))
    chips = _group_size(instruction, program.devices)
    wire = size * _wire_share(kind, chips)
    return Collective(
        kind=kind,
        count=count,
        bytes=size,
        wire_bytes=wire,
        among=chips,
        between_slices=False,
        source=instruction.source,
        loop=loop,
    )


def is_chained(instruction: Instruction) -> bool:
    """True if an instruction is a piece of a collective that libtpu spreads over many fusions.

    The first piece feeds a custom call AsyncCollectiveStart, the last one AsyncCollectiveDone;
    those between lie in fusions that compute something else meanwhile. Each has the whole
    collective's shape, and they share its channel.
    """
    return instruction.opcode in COLLECTIVES and 'chain_id="' in instruction.attributes


def continues_chain(computation: Computation, instruction: Instruction) -> bool:
    """True for the pieces of a chained collective but the first."""
    users = computation.users[instruction.name]
    starts = any('custom_call_target="AsyncCollectiveStart"' in user.attributes for user in users)
    return is_chained(instruction) and not starts


def collective_results(instruction: Instruction) -> tuple[Array, ...]:
    """Returns the result arrays of a collective, without the operands that some starts repeat."""
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        return instruction.parts[1]
    return instruction.shape


def _between_slices(computation, send, count, loop):
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes)
    kind = transfer and _TRANSFERS.get(transfer.group(1))
    if kind is None:
        raise ValueError(
            f"{send.name} goes to another slice as {transfer and transfer.group(1)}: this kind of "
            "collective is not known"
        )
    slices = _slices(send)
    size = sum(array.bytes for array in send.parts[0]) * (slices if kind == "all-gather" else 1)
    wire = size * _wire_share(kind, slices)
    return Collective(
        kind=kind,
        count=count,
        bytes=size,
        wire_bytes=wire,
        among=slices,
        between_slices=True,
        source=_received_for(computation, send),
        loop=loop,
    )


def _slices(send):
    """Counts participating slices: of '{1,2}x{0:15}', {{100000,200000},…}, {{100000->…}}."""
    match = re.search(r'_xla_megascale_target="?\{\{?([^}]*)\}', send.attributes)
    if not match:
        raise ValueError(f"{send.name} goes to other slices, but its text does not name them")
    return len(re.split(r"->|,", match.group(1)))


def _received_for(computation, send):
    """The source of the first user of the received data: the collective itself has none."""
    receives = (user for user in computation.users[send.operands[1]] if user.opcode == "recv")
    waiting, seen = list(receives), set()
    while waiting:
        instruction = waiting.pop(0)
        if "op_name=" in instruction.attributes:
            return instruction.source
        if instruction.name not in seen:
            seen.add(instruction.name)
            waiting += computation.users[instruction.name]
    return send.source


def _wire_share(kind, members):
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (members - 1) / members * (2 if kind == "all-reduce" else 1)


def _group_size(instruction, devices):
    """Counts the chips of one replica group."""
    groups = re.search(r"replica_groups=(.*)", instruction.attributes)
    if not groups:
        return devices
    text = groups.group(1)
    if explicit := re.match(r"\{\{([\d,]+)\}", text):
        return explicit.group(1).count(",") + 1
    if iota := re.match(r"\[\d+,(\d+)\]", text):
        return int(iota.group(1))
    if mesh := re.match(r"mesh\[([^\]]*)\][^{]*\{('[^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        size = 1
        for axis, subsize in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2)):
            size *= int(subsize or sizes[axis])
        return size
    if text.startswith("{}"):
        return devices
    raise ValueError(f"{instruction.name}: replica groups {text[:60]!r} are of a form not known")
