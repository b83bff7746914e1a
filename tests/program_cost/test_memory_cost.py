"""Bytes that a program moves in main memory."""

import pytest

from gkd.program_cost import hlo
from gkd.program_cost.program_cost import program_cost
from tests.program_cost.programs import TPU, scan, text_of

pytestmark = pytest.mark.usefixtures("optimized")


def test_only_what_moves_in_main_memory_counts():
    cost = program_cost(TPU)
    slab = 4 * 256 * 64  # as a row-major array; in tiles of (8, 128), twice that
    moved = {part.opcode: 0.0 for part in cost.parts}
    for part in cost.parts:
        moved[part.opcode] += part.bytes
    gathered = 2 * 64 * 256
    # One slab is read, written in tiles, written in place from the chip; a copy reads its source.
    assert moved == {
        "fusion": slab + 2 * slab + slab,
        "copy-start": 2 * 16 * 256,
        "all-gather-start": gathered,
        "negate": gathered,
    }
    assert cost.elementwise == 64 * 256
    assert cost.by_kind() == {"all-gather": (1, 2 * 64 * 256)}
    assert cost.collectives[0].among == 4
    assert cost.wire_bytes == 2 * 64 * 256 * 3 / 4


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ("f32[1024,1024,6]{2,1,0:T(8,128)}", 4 * 1024 * 1024 * 128),
        ("f32[1024,1024,6]{0,1,2:T(8,128)S(1)}", 4 * 1024 * 1024 * 6),
        ("bf16[2,6,100,64]{2,3,1,0:T(8,128)(2,1)}", 2 * 2 * 6 * 128 * 64),
        ("s32[1000]{0:T(1024)}", 4 * 1024),
        ("f32[1024,6]{1,0}", 4 * 1024 * 6),
    ],
)
def test_tiles_are_filled_up(shape, stored):
    (array,) = hlo.arrays(shape)
    assert array.stored_bytes == stored


def test_a_scan_reads_its_slices_once():
    cost = program_cost(text_of(scan, (64, 64), (50, 64, 64)))
    # Reading the stack whole in each of 50 trips would be 41 MB; kernels 0.8 MB, states 6 times.
    assert 50 * 4 * 64 * 64 * 3 <= cost.bytes <= 50 * 4 * 64 * 64 * 8
