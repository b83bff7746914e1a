"""What compiled programs cost, against closed forms; loops as often as they run."""

import dataclasses
import functools
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gkd.decode.sampling import sample
from gkd.models import t5
from gkd.models.interface import project
from gkd.parallel import mesh as meshes
from gkd.program_cost import hlo
from gkd.program_cost.program_cost import program_cost, program_memory
from gkd.program_cost.roofline import Chip, roofline

pytestmark = pytest.mark.usefixtures("optimized")


def text_of(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(s, "float32") if isinstance(s, tuple) else s for s in shapes]
    return jax.jit(function).lower(*arrays).compile().as_text()


def without_counts(text):
    """As a TPU's compiler leaves it: the trips are only in the loops' conditions."""
    assert "known_trip_count" in text
    return re.sub(r'"known_trip_count":\{[^}]*\},?', "", text)


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


HEAD = "HloModule m, num_partitions=16\n\n"


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


def scan(x, kernels):
    def body(x, kernel):
        return jnp.tanh(x @ kernel), None

    return jax.lax.scan(body, x, kernels)[0]


def nested(x, kernels):
    def outer(carry):
        return carry[0] + 3, scan(carry[1], kernels)

    return jax.lax.while_loop(lambda carry: carry[0] <= 20, outer, (5, x))[1]  # 5, 8, … 20


@pytest.mark.parametrize(("function", "trips"), [(scan, [5]), (nested, [6, 5])])
def test_loops_count_as_often_as_they_run(function, trips):
    text = text_of(function, (4, 16), (5, 16, 16))
    products = 5 if function is scan else 30
    for one in (text, without_counts(text)):
        cost = program_cost(one)
        assert [loop.trips for loop in cost.loops] == trips
        assert not any(loop.stops_early for loop in cost.loops)
        assert cost.flops == products * 2 * 4 * 16 * 16
        assert {part.loop for part in cost.parts if part.flops} == {cost.loops[-1].source}


def sampling_loop(x, kernel):
    def unfinished(carry):
        step, x = carry
        return (step < 40) & ~jnp.all(x > 3)

    return jax.lax.while_loop(unfinished, lambda c: (c[0] + 1, c[1] @ kernel), (0, x))[1]


def test_a_loop_that_may_stop_early_counts_its_bound_or_what_is_expected_of_it():
    text = text_of(sampling_loop, (4, 16), (16, 16))
    cost = program_cost(text)
    (loop,) = cost.loops
    assert (loop.bound, loop.stops_early, loop.trips) == (40, True, 40)
    assert cost.flops == 40 * 2 * 4 * 16 * 16
    assert program_cost(text, expected_share=0.25).flops == 10 * 2 * 4 * 16 * 16
    by_loop = program_cost(text, expected_share=lambda loop: 30 / loop.bound)
    assert by_loop.flops == 30 * 2 * 4 * 16 * 16


def test_the_tightest_of_two_counts_is_the_bound():
    def both(x):
        unfinished = lambda carry: (carry[0] < 40) & (carry[0] + 1 < 21)  # noqa: E731
        return jax.lax.while_loop(unfinished, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))[1]

    (loop,) = program_cost(text_of(both, (4, 4))).loops
    assert (loop.trips, loop.stops_early) == (20, False)


def test_a_loop_whose_trips_cannot_be_read_is_refused():
    def grows(x, limit):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < limit[0], lambda x: x @ x, x)

    text = text_of(grows, (4, 4), (1,))
    with pytest.raises(ValueError, match=r"the loop while\S* .* cannot be read .* default_trips"):
        program_cost(text)
    assert program_cost(text, default_trips=3).flops == 3 * 2 * 4**3


def test_a_conditional_costs_its_dearest_branch():
    def either(x, flag):
        return jax.lax.cond(flag[0] > 0, lambda x: x, lambda x: x @ x @ x, x)

    assert program_cost(text_of(either, (8, 8), (1,))).flops == 2 * 2 * 8**3


LAYERS, WIDTH, HEADS, DIM, MLP, VOCABULARY = 2, 32, 2, 8, 48, 96
ROWS, SOURCE, TARGET = 2, 24, 12


def closed_form():
    """Of T5 on whole sequences: 2 for each weight and each query-key and weight-value product."""
    joined = HEADS * DIM
    encoder = SOURCE * (4 * WIDTH * joined + 3 * WIDTH * MLP + 2 * SOURCE * joined)
    cross = SOURCE * 2 * WIDTH * joined
    decoder = TARGET * (6 * WIDTH * joined + 3 * WIDTH * MLP + 2 * (TARGET + SOURCE) * joined)
    head = TARGET * WIDTH * VOCABULARY
    return 2 * ROWS * (LAYERS * (encoder + cross + decoder) + head)


def test_t5_costs_its_closed_form_stacked_or_not():
    flops = {}
    for stacked in (True, False):
        config = t5.T5Config(
            VOCABULARY, WIDTH, HEADS, DIM, MLP, LAYERS, LAYERS, stacked_layers=stacked
        )
        run = functools.partial(t5_logits, t5.T5(config))
        shapes = jax.eval_shape(t5.as_seq2seq(config).init, jax.random.PRNGKey(0))
        tokens = [jax.ShapeDtypeStruct((ROWS, n), "int32") for n in (SOURCE, TARGET)]
        text = text_of(run, nn.meta.unbox(shapes), *tokens)
        cost = program_cost(without_counts(text) if stacked else text)
        assert len(cost.loops) == (2 if stacked else 0)
        flops[stacked] = cost.flops
    assert flops[True] == pytest.approx(closed_form(), rel=0.03)
    assert flops[True] == pytest.approx(flops[False], rel=0.03)


def t5_logits(module, params, *tokens):
    return module.apply({"params": params}, *tokens)


def test_sampling_costs_what_its_tokens_cost_one_by_one():
    """The loop's count, against a program that has no loop."""
    config = t5.T5Config(VOCABULARY, WIDTH, HEADS, DIM, MLP, LAYERS, LAYERS)
    model = t5.as_seq2seq(config)

    def looped(params, tokens):
        encoded = model.encode(params, tokens)
        valid = jnp.arange(VOCABULARY) > 0
        return sample(model, params, encoded, jax.random.key(0), max_length=TARGET, valid=valid)

    def unrolled(params, tokens):
        weights, cache = model.init_cache(params, model.encode(params, tokens), TARGET)
        head, token, written = model.head(params), tokens[:, 0], []
        for position in range(TARGET):
            hidden, cache = model.decode_step(weights, cache, token, position)
            token = jnp.argmax(project(hidden, head), axis=-1).astype(jnp.int32)
            written.append(token)
        return written

    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.PRNGKey(0)))
    tokens = jax.ShapeDtypeStruct((ROWS, SOURCE), "int32")
    loop = program_cost(text_of(looped, params, tokens))
    flat = program_cost(text_of(unrolled, params, tokens))
    assert [one.bound for one in loop.loops if one.stops_early] == [TARGET]
    assert not flat.loops
    assert loop.flops == pytest.approx(flat.flops, rel=0.03)


def test_collectives_count_with_their_loops_and_bytes():
    mesh = meshes.make_mesh(data=4, model=2)

    def collect(x):  # x [8, 16] per device
        def body(_, x):
            return x + jax.lax.psum(x, "data")

        x = jax.lax.fori_loop(0, 3, body, x)
        whole = jax.lax.all_gather(x, "model", axis=1, tiled=True)  # [8, 32]
        part = jax.lax.psum_scatter(whole, "data", scatter_dimension=0, tiled=True)  # [2, 32]
        moved = jax.lax.ppermute(part, "model", [(0, 1), (1, 0)])
        return jax.lax.all_to_all(moved, "model", 0, 1, tiled=True)

    specs = P("data", "model")
    split = jax.shard_map(collect, mesh=mesh, in_specs=specs, out_specs=specs)
    cost = program_cost(text_of(split, (32, 32)))
    assert cost.by_kind() == {
        "all-reduce": (3, 3 * 4 * 8 * 16),
        "all-gather": (1, 4 * 8 * 32),
        "reduce-scatter": (1, 4 * 8 * 32),
        "collective-permute": (1, 4 * 2 * 32),
        "all-to-all": (1, 4 * 2 * 32),
    }
    # Around rings of 4 and 2: twice 3/4 of an all-reduce, 3/4 and 1/2 of the scatter and gather.
    assert cost.wire_bytes == 3 * 512 * 1.5 + 1024 / 2 + 1024 * 0.75 + 256 + 256 / 2


# What the TPU's compiler writes: asynchronous pairs, on-chip memory S(1), in-place updates.
TPU = (
    HEAD
    + """%slice_one (p: f32[5,256,64], i: s32[]) -> f32[256,64] {
  %p = f32[5,256,64]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[] constant(0)
  %s = f32[1,256,64]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,256,64}
  ROOT %b = f32[256,64]{1,0} bitcast(%s)
}

%update_one (q: f32[5,256,64], u: f32[1,256,64], j: s32[]) -> f32[5,256,64] {
  %q = f32[5,256,64]{2,1,0} parameter(0)
  %u = f32[1,256,64]{2,1,0} parameter(1)
  %j = s32[] parameter(2)
  %nought = s32[] constant(0)
  ROOT %d = f32[5,256,64]{2,1,0} dynamic-update-slice(%q, %u, %j, %nought, %nought)
}

ENTRY %main (x: f32[5,256,64], n: s32[], v: bf16[16,256]) -> (f32[5,256,64], f32[256,64]) {
  %x = f32[5,256,64]{2,1,0:T(8,128)} parameter(0)
  %n = s32[]{:T(128)S(6)} parameter(1)
  %v = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(2)
  %one = f32[256,64]{1,0:T(8,128)} fusion(%x, %n), kind=kLoop, calls=%slice_one
  %new = f32[1,256,64]{2,1,0:T(8,128)S(1)} bitcast(%one)
  %kept = f32[5,256,64]{2,1,0} fusion(%x, %new, %n), kind=kLoop, calls=%update_one
  %cs = (bf16[16,256]{1,0:S(1)}, bf16[16,256]{1,0}, u32[]{:S(2)}) copy-start(%v)
  %cd = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} copy-done(%cs)
  %gs = (bf16[16,256]{1,0:S(1)}, bf16[64,256]{1,0}) all-gather-start(%cd), GROUPS
  %gd = bf16[64,256]{1,0} all-gather-done(%gs)
  %neg = bf16[64,256]{1,0:T(8,128)(2,1)S(1)} negate(%gd)
  ROOT %t = (f32[5,256,64]{2,1,0}, f32[256,64]{1,0}) tuple(%kept, %one)
}
"""
).replace("GROUPS", "replica_groups=mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'b'}")


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


def test_memory_is_the_compilers():
    compiled = jax.jit(lambda x: x + 1, donate_argnums=0).lower(jnp.zeros((32, 32))).compile()
    memory = program_memory(compiled)
    assert (memory.arguments, memory.outputs, memory.aliased) == (4096, 4096, 4096)
    assert memory.peak >= 4096
    # A TPU's peak reuses donated arguments; a CPU's may be none.
    names = ("argument", "output", "alias", "temp")
    sizes = {
        f"{name}_size_in_bytes": size for name, size in zip(names, (80, 90, 70, 50), strict=True)
    }
    for said, peak in ((130, 130), (0, 150), (60, 150)):
        found = types.SimpleNamespace(**sizes, peak_memory_in_bytes=said)
        assert program_memory(types.SimpleNamespace(memory_analysis=lambda: found)).peak == peak  # noqa: B023


def test_the_roofline_is_the_slower_of_compute_and_memory_plus_the_collectives():
    cost = program_cost(TPU)
    chip = Chip(flops=1.0, memory=1, bandwidth=2.0, interconnect=3.0)
    moved, sent = 4 * 256 * 64 * 4 + 2 * 16 * 256 + 2 * 2 * 64 * 256, 2 * 64 * 256 * 0.75
    assert roofline(cost, chip).seconds == pytest.approx(moved / 2 + sent / 3)
    part = dataclasses.replace(cost.parts[0], multiplier_flops=1e6)
    busy = dataclasses.replace(cost, parts=(part, *cost.parts[1:]))
    assert roofline(busy, chip).seconds == pytest.approx(1e6 + sent / 3)
    idle = moved - cost.parts[0].bytes
    assert roofline(busy, chip).no_overlap == pytest.approx(1e6 + idle / 2 + sent / 3)
