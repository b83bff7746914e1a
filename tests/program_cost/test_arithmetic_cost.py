"""FLOPs of matrix products in closed form."""

import functools

import jax
import jax.numpy as jnp
import pytest

from gkd.program_cost.program_cost import program_cost
from tests.program_cost.programs import HEAD, text_of

pytestmark = pytest.mark.usefixtures("optimized")


def convolve(inputs, kernel, stride=1, padding="VALID"):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        inputs, kernel, (stride, stride), padding, dimension_numbers=axes
    )


IMAGE = [(4, 9, 9, 8), (3, 3, 8, 16)]


@pytest.mark.parametrize(
    ("function", "shapes", "flops"),
    [
        (jnp.dot, [(48, 32), (32, 24)], 2 * 48 * 32 * 24),
        (
            functools.partial(jnp.einsum, "bqhd,bkhd->bhqk"),
            [(3, 16, 2, 8), (3, 20, 2, 8)],
            2 * 3 * 2 * 16 * 20 * 8,
        ),
        (functools.partial(convolve, stride=2), IMAGE, 2 * 4 * 16 * 9 * 128),
        # Along an axis of 9, windows of 3 meet 3·9−2 inputs; the other two fall on the padding.
        (functools.partial(convolve, padding="SAME"), IMAGE, 2 * 4 * 625 * 128),
    ],
    ids=["dot", "batched dot", "convolution", "padded convolution"],
)  # fmt: skip
def test_matrix_products_cost_their_closed_form(function, shapes, flops):
    assert program_cost(text_of(function, *shapes)).flops == flops


@pytest.mark.parametrize(
    ("line", "left", "right", "out", "flops"),
    [
        ("dim_labels=bf_io->bf", "16,256", "256,64", "16,64", 2 * 16 * 256 * 64),
        ("dim_labels=bf_oi->bf", "16,256", "64,256", "16,64", 2 * 16 * 256 * 64),
        (  # attention's two batch axes have become windows that meet one dilated input each
            "window={size=16x2 stride=15x1 lhs_dilate=16x2}, dim_labels=0b1f_0o1i->01bf",
            "16,256,2,64", "16,256,2,64", "16,2,256,256", 2 * 16 * 2 * 256 * 256 * 64,
        ),
        (  # a contraction over two axes: the window slides over nothing
            "window={size=2}, dim_labels=0fb_0io->bf0",
            "2,64,512", "2,64,1024", "512,1024,1", 2 * 2 * 64 * 512 * 1024,
        ),
    ],
)  # fmt: skip
def test_a_dot_that_a_tpu_runs_as_a_convolution_costs_the_same(line, left, right, out, flops):
    text = f"""{HEAD}ENTRY %main (a: bf16[{left}], b: bf16[{right}]) -> f32[{out}] {{
  %a = bf16[{left}]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %b = bf16[{right}]{{1,0}} parameter(1)
  ROOT %c = f32[{out}]{{1,0}} convolution(%a, %b), {line}, metadata={{op_name="f/dot"}}
}}
"""
    assert program_cost(text).flops == flops


# A token's query with the keys of its row, 16 rows, 2 heads of 8, 12 keys: no dot is left of it.
SUMMED = (
    HEAD
    + """%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%scores (q: f32[16,2,8], k: f32[16,2,8,12]) -> f32[16,2,12] {
  %q = f32[16,2,8]{2,1,0} parameter(0)
  %k = f32[16,2,8,12]{3,2,1,0} parameter(1)
  %wide = f32[16,2,8,12]{3,2,1,0} broadcast(%q), dimensions={0,1,2}
  %m = f32[16,2,8,12]{3,2,1,0} multiply(%wide, %k), metadata={op_name="multiply.1"}
  %zero = f32[] constant(0)
  ROOT %r = f32[16,2,12]{2,1,0} reduce(%m, %zero), dimensions={2}, to_apply=%add, SOURCE
}

ENTRY %main (q: f32[16,2,8], k: f32[16,2,8,12]) -> f32[16,2,12] {
  %q = f32[16,2,8]{2,1,0} parameter(0)
  %k = f32[16,2,8,12]{3,2,1,0} parameter(1)
  ROOT %f = f32[16,2,12]{2,1,0} fusion(%q, %k), kind=kLoop, calls=%scores
}
"""
)


def test_a_dot_that_a_tpu_runs_as_a_sum_costs_the_same_but_meets_no_multiplier():
    source = 'metadata={op_name="jit(step)/while/body/NAME"}'
    products = 16 * 2 * 12 * 8
    for name, flops in (("bghd,bhdl->bhgl/dot_general", 2 * products), ("reduce_sum", 0)):
        cost = program_cost(SUMMED.replace("SOURCE", source.replace("NAME", name)))
        assert (cost.flops, cost.multiplier_flops) == (flops, 0)
        assert cost.elementwise == (products if flops else 2 * products)


def test_float32_at_the_highest_precision_takes_six_passes_of_the_multiplier():
    for precision, passes in ((None, 1), ("high", 3), ("highest", 6)):
        text = text_of(functools.partial(jnp.dot, precision=precision), (8, 16), (16, 4))
        cost = program_cost(text)
        assert (cost.flops, cost.multiplier_flops) == (1024, 1024 * passes)
