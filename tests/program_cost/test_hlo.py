"""The text of a compiled program, read into instructions."""

import pytest

from gkd.program_cost import hlo

TEXT = """\
HloModule jit_f, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[2,3]) -> (f32[2,3], s32[]) {
  %x = f32[2,3]{1,0} parameter(0)
  %n = s32[] constant(7)
  %y = f32[2,3]{1,0} negate(%x), metadata={op_name="jit(f)/neg"}
  ROOT %out = (f32[2,3]{1,0}, s32[]) tuple(%y, %n)
}
"""


def test_computations_operands_and_roots():
    program = hlo.parse(TEXT)
    assert program.devices == 4 and program.entry.name.strip("%") == "main"
    root = program.entry.root
    assert (root.opcode, len(root.operands)) == ("tuple", 2)
    negate = program.entry.operand(root, 0)
    assert negate.opcode == "negate" and negate.source == "jit(f)/neg"
    assert program.entry.operand(root, 1).literal == "7"
    assert [p.opcode for p in program.entry.parameters] == ["parameter"]


@pytest.mark.parametrize(
    ("shape", "bytes_", "stored"),
    [
        ("f32[2,3]", 24, 24),
        ("bf16[10]", 20, 20),
        ("pred[]", 1, 1),
        ("f32[5,130]{1,0:T(8,128)}", 2600, 8 * 256 * 4),  # tiles of 8×128 are filled up
    ],
)
def test_sizes_of_arrays(shape, bytes_, stored):
    (array,) = hlo.arrays(shape)
    assert (array.bytes, array.stored_bytes) == (bytes_, stored)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule m\n")
