"""Collectives between slices as libtpu writes them: kinds, bytes and sources, by hand."""

import re

import pytest

from gkd.program_cost.program_cost import program_cost
from gkd.program_cost.roofline import CHIPS, Chip, roofline

RUNTIME = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
# One transfer, of f32[4,8,128] that is 16 kB; what is received is taken by a named instruction.
TRANSFER = """
  %begin = token[] after-all()
  %send = (SENT{2,1,0:T(8,128)}, u32[], token[]) send(%x, %begin), channel_id=2, ATTRIBUTES
  %recv = (RECEIVED{2,1,0:T(8,128)}, u32[], token[]) recv(%begin), channel_id=1, ATTRIBUTES
  %sent = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %got = (RECEIVED{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  %y = RECEIVED{2,1,0:T(8,128)} get-tuple-element(%got), index=0
  ROOT %used = RECEIVED{2,1,0:T(8,128)} negate(%y), metadata={op_name="jit(step)/gkd_teacher/neg"}
"""
PROGRAM = f"""HloModule m, num_partitions=16

ENTRY %main (x: SENT) -> RECEIVED {{
  %x = SENT{{2,1,0:T(8,128)}} parameter(0){TRANSFER}}}
"""
TWO = '"{1,2}x{0:15}"'
PAIRS = "{{200000->100001},{100001->200000}}"
KILOBYTES = 4 * 4 * 8 * 128


def transfer(kind, target, sent="f32[4,8,128]", received="f32[4,8,128]", handler=RUNTIME):
    attributes = (
        f"is_host_transfer=true, frontend_attributes={{{handler},"
        '_xla_host_transfer_rendezvous="all-reduce.60_0",_xla_megascale_reduce_operation="SUM",'
        f'_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}'
    )
    filled = PROGRAM.replace("SENT", sent).replace("RECEIVED", received)
    return filled.replace("ATTRIBUTES", attributes)


@pytest.mark.parametrize(
    ("kind", "target", "shapes", "expected", "whole", "sent"),
    [
        ("ALL_REDUCE", TWO, (4, 4), "all-reduce", 1, 1),
        ("ALL_REDUCE", '"{1,2,3,4}x{0:7}"', (4, 4), "all-reduce", 1, 1.5),
        ("ALL_GATHER", TWO, (4, 8), "all-gather", 2, 1),
        ("REDUCE_SCATTER", TWO, (4, 2), "reduce-scatter", 1, 0.5),
        ("ALL_TO_ALL", "{{100000,200000},{100001,200001}}", (4, 4), "all-to-all", 1, 0.5),
        ("ONE_TO_ONE", PAIRS, (4, 4), "collective-permute", 1, 1),
    ],
)
def test_what_a_chip_sends_to_other_slices(kind, target, shapes, expected, whole, sent):
    """Among n slices as among n chips of a ring, of the array that a chip has of it."""
    shapes = [f"f32[{size},8,128]" for size in shapes]
    cost = program_cost(transfer(kind, target, *shapes))
    assert cost.by_kind() == {} and cost.wire_bytes == 0
    assert cost.by_kind(between_slices=True) == {expected: (1, whole * KILOBYTES)}
    assert cost.dcn_bytes == sent * KILOBYTES
    (one,) = cost.collectives
    assert one.source == "jit(step)/gkd_teacher/neg"


def test_a_collective_names_the_loop_around_it():
    """As in sampling, where all slices must have ended: three trips."""
    inside = TRANSFER.replace("SENT", "f32[4,8,128]").replace("RECEIVED", "f32[4,8,128]")
    inside = inside.replace("  ROOT %used", "  %used").replace("%x,", "%carried,")
    tuple_of = "(f32[4,8,128]{2,1,0}, s32[])"
    text = f"""HloModule m, num_partitions=16

%again (p: {tuple_of}) -> pred[] {{
  %p = {tuple_of} parameter(0)
  %i = s32[] get-tuple-element(%p), index=1
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT
}}

%body (p: {tuple_of}) -> {tuple_of} {{
  %p = {tuple_of} parameter(0)
  %carried = f32[4,8,128]{{2,1,0}} get-tuple-element(%p), index=0
  %i = s32[] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one){inside}  ROOT %both = {tuple_of} tuple(%used, %next)
}}

ENTRY %main (x: f32[4,8,128]) -> {tuple_of} {{
  %x = f32[4,8,128]{{2,1,0}} parameter(0)
  %nought = s32[] constant(0)
  %begin = {tuple_of} tuple(%x, %nought)
  ROOT %w = {tuple_of} while(%begin), condition=%again, body=%body, metadata={{op_name="a/while"}}
}}
"""
    attributes = transfer("ALL_REDUCE", TWO).partition("channel_id=2, ")[2].partition("\n")[0]
    cost = program_cost(text.replace("ATTRIBUTES", attributes))
    assert cost.by_kind(between_slices=True) == {"all-reduce": (3, 3 * KILOBYTES)}
    assert [one.loop for one in cost.collectives] == ["a/while"]


def test_a_transfer_reads_what_it_sends_and_writes_what_it_receives_once():
    cost = program_cost(transfer("ALL_GATHER", TWO, "f32[4,8,128]", "f32[8,8,128]"))
    moved = {part.opcode: part.bytes for part in cost.parts}
    assert moved == {"send": KILOBYTES, "recv": 2 * KILOBYTES, "negate": 4 * KILOBYTES}


def test_a_transfer_to_a_host_is_no_collective():
    text = transfer("ALL_REDUCE", TWO, handler='_xla_host_transfer_handler_name="io_callback"')
    assert program_cost(text).collectives == ()


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("ALL_TO_SOME", TWO, "send goes to another slice as ALL_TO_SOME: this kind"),
        ("ALL_REDUCE", "everyone", "send goes to other slices, but its text does not name them"),
    ],
)
def test_a_transfer_that_cannot_be_read_is_refused(kind, target, message):
    with pytest.raises(ValueError, match=message):
        program_cost(transfer(kind, target))


def test_the_network_has_a_bandwidth_of_its_own():
    cost = program_cost(transfer("ALL_REDUCE", TWO))
    chip = Chip(1.0, 1, bandwidth=float("inf"), interconnect=1.0, dcn=64.0)
    assert roofline(cost, chip).dcn == KILOBYTES / 64 == roofline(cost, chip).seconds
    assert roofline(cost, chip).no_overlap == KILOBYTES / 64
    assert roofline(cost, CHIPS["v4"]).dcn == 0  # not published


def test_the_networks_bandwidth_is_what_the_chips_pages_say():
    """DCN of a v5e host's two, a v6e host's four cards, 8 chips; of a pod of 256; of a v5p chip."""
    published = {"v5e": 2 * 100e9 / 8, "v6e": 4 * 200e9 / 8, "v5p": 50e9}
    for name, bits in published.items():
        assert CHIPS[name].dcn == bits / 8
    assert CHIPS["v5e"].dcn == 6.4e12 / 256 / 8
    assert CHIPS["v6e"].dcn == 25.6e12 / 256 / 8


# One gather of bf16[8,128] (S) into bf16[128,128] (L) by 16 chips, as libtpu spreads it: a fusion
# starts it, one computes meanwhile (X, in and out), one ends it; buffers are handed on.
CHAIN = """HloModule m, num_partitions=16

%start (p: S) -> (S, L, FLAG) {
  %p = S parameter(0)
  %piece.0 = L all-gather(%p), GATHER
  ROOT %begin = (S, L, FLAG) custom-call(%piece.0), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (x: X, p: S, b: L, flag: FLAG) -> (X, S, L, L, FLAG) {
  %x = X parameter(0)
  %y = X negate(%x)
  %p = S parameter(1)
  %b = L parameter(2)
  %flag = FLAG parameter(3)
  %piece.1 = L all-gather(%p), GATHER
  ROOT %all = (X, S, L, L, FLAG) tuple(%y, %p, %b, %piece.1, %flag)
}

%end (p: S, b: L, flag: FLAG) -> L {
  %p = S parameter(0)
  %b = L parameter(1)
  %flag = FLAG parameter(2)
  %piece.2 = L all-gather(%p), GATHER
  ROOT %e = L custom-call(%p, %b, %piece.2, %flag), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: S, x: X) -> L {
  %p = S parameter(0)
  %x = X parameter(1)
  %s = (S, L, FLAG) fusion(%p), kind=kCustom, calls=%start
  %s.0 = S get-tuple-element(%s), index=0
  %s.1 = L get-tuple-element(%s), index=1
  %s.2 = FLAG get-tuple-element(%s), index=2
  %m = (X, S, L, L, FLAG) fusion(%x, %s.0, %s.1, %s.2), kind=kCustom, calls=%meanwhile
  %m.1 = S get-tuple-element(%m), index=1
  %m.2 = L get-tuple-element(%m), index=2
  %m.4 = FLAG get-tuple-element(%m), index=4
  ROOT %d = L fusion(%m.1, %m.2, %m.4), kind=kCustom, calls=%end
}
"""
SHAPES = {
    "GATHER": "channel_id=118, replica_groups=[1,16]<=[16], dimensions={0}, CHAINED",
    "CHAINED": 'frontend_attributes={chain_id="3"}',
    "S": "bf16[8,128]{1,0}", "L": "bf16[128,128]{1,0}", "X": "f32[16,128]{1,0}",
    "FLAG": "u32[]{:S(2)}",
}  # fmt: skip


def test_a_collective_spread_over_fusions_counts_once():
    text = CHAIN
    for name, shape in SHAPES.items():
        text = re.sub(rf"\b{name}\b", lambda _, shape=shape: shape, text)
    cost = program_cost(text)
    operand, gathered, computed = 2 * 8 * 128, 2 * 128 * 128, 2 * 4 * 16 * 128
    assert cost.by_kind() == {"all-gather": (1, gathered)}
    assert cost.wire_bytes == gathered * 15 / 16
    assert cost.bytes == operand + gathered + computed
