"""The cost of compiled programs, against closed forms; loops as often as they run."""

import functools
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
from gkd.program_cost.program_cost import program_cost, program_memory
from tests.program_cost.programs import text_of, without_counts

pytestmark = pytest.mark.usefixtures("optimized")


def test_a_conditional_costs_its_dearest_branch():
    def either(x, flag):
        return jax.lax.cond(flag[0] > 0, lambda x: x, lambda x: x @ x @ x, x)

    assert program_cost(text_of(either, (8, 8), (1,))).flops == 2 * 2 * 8**3


LAYERS, WIDTH, HEADS, DIM, MLP, VOCABULARY = 2, 32, 2, 8, 48, 96
ROWS, SOURCE, TARGET = 2, 24, 12


def closed_form():
    """FLOPs on whole sequences: 2 for each weight, query-key and weight-value product."""
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
