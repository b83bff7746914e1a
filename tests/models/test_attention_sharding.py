"""Rows in the layers of a model whose heads its mesh does not divide: one device is the truth."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.beam import beam_search
from gkd.decode.sampling import sample
from gkd.models import t5
from gkd.models.attention_sharding import copy_per_shard, row_sharding
from gkd.models.interface import project
from gkd.parallel import mesh as meshes
from gkd.parallel.model_sharding import UNSHARDED
from gkd.program_cost.program_cost import program_cost

PROMPTS, SOURCE, SAMPLES, LENGTH, VOCAB = 8, 7, 2, 5, 64
EMBED, HEADS, DIM, MLP, DEPTH = 16, 3, 8, 32, 2


def model_of(sharding=UNSHARDED, **ways):
    return t5.as_seq2seq(
        t5.T5Config(
            vocab_size=VOCAB, emb_dim=EMBED, num_heads=HEADS, head_dim=DIM, mlp_dim=MLP,
            num_encoder_layers=DEPTH, num_decoder_layers=1, **ways,
        ),
        sharding,
    )  # fmt: skip


def learn_and_write(model, params, inputs, targets):
    """A loss, its gradients, samples and beams."""
    valid = jnp.ones(VOCAB, bool).at[0].set(False)

    def loss(params):
        encoded = model.encode(params, inputs)
        hidden = model.decode_hidden(params, encoded, targets).last
        logits = project(hidden, model.head(params))
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2), encoded

    (value, encoded), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    how = {"max_length": LENGTH, "valid": valid}
    written = sample(model, params, encoded, jax.random.key(1), samples=SAMPLES, **how)
    found = beam_search(model, params, encoded, beams=2, **how)
    return value, gradients, written, found


@functools.cache
def case(prompts, **ways):
    """(arguments, what one device makes of them, boxed shapes of parameters)."""
    model = model_of(**ways)
    random = np.random.RandomState(0)
    inputs = random.randint(2, VOCAB, (prompts, SOURCE))
    inputs[::3, 4:] = 0
    targets = random.randint(2, VOCAB, (prompts * SAMPLES, LENGTH))
    boxed = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape) / np.sqrt(x.shape[0]), x.dtype),
        nn.meta.unbox(boxed),
    )
    arguments = params, jnp.asarray(inputs), jnp.asarray(targets)
    one_device = jax.jit(functools.partial(learn_and_write, model))(*arguments)
    return arguments, one_device, boxed


def lower(mesh, function, arguments, boxed):
    """(lowered program, the shardings of its arguments)."""
    rows, rules = meshes.batch_sharding(mesh), meshes.rules_for()
    own = meshes.rules_of_model(rules, HEADS, mesh)
    placements = meshes.parameter_shardings(mesh, boxed, own), rows, rows
    return jax.jit(function, in_shardings=placements).lower(*arguments), placements


@pytest.mark.parametrize(
    "data, model, prompts, ways",
    [
        pytest.param(2, 4, 8, (), marks=pytest.mark.slow),
        (2, 2, 4, ("stacked_layers", "remat", "relative_bias_per_layer", "logits_via_embedding")),
        pytest.param(1, 4, 8, ("stacked_layers", "remat"), marks=pytest.mark.slow),
        pytest.param(
            2, 2, 4, ("relative_bias_per_layer", "logits_via_embedding"), marks=pytest.mark.slow
        ),
        pytest.param(2, 4, 4, (), marks=pytest.mark.slow),  # rows that do not divide stay whole
    ],
)
def test_rows_over_both_axes_change_neither_loss_nor_gradient_nor_samples(
    data, model, prompts, ways
):
    arguments, want, boxed = case(prompts, **dict.fromkeys(ways, True))
    mesh = meshes.make_mesh(data, model, devices=jax.devices()[: data * model])
    sharded = model_of(meshes.model_sharding(mesh), **dict.fromkeys(ways, True))
    function = functools.partial(learn_and_write, sharded)
    lowered, placements = lower(mesh, function, arguments, boxed)
    got = lowered.compile()(*jax.device_put(arguments, placements))
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(want[1]))
    assert scale > 1e-2, "no gradient, so the comparison would show nothing"
    np.testing.assert_array_equal(got[2].tokens, want[2].tokens)
    np.testing.assert_array_equal(got[3].tokens, want[3].tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)


@pytest.mark.parametrize(
    "shape, heads, prompts, axes",
    [
        ((2, 4), 6, 8, ("data", "model")),
        ((2, 4), 6, 16, ("data", "model")),
        ((2, 4), 8, 8, ()),  # heads divide
        ((2, 4), 6, 12, ()),  # prompts do not
        ((2, 4), 6, 4, ()),
        ((8, 1), 6, 8, ()),
        ((1, 8), 6, 8, ("data", "model")),
    ],
)
def test_rows_are_spread_where_heads_do_not_divide_and_prompts_do(shape, heads, prompts, axes):
    sharding = meshes.model_sharding(meshes.make_mesh(*shape))
    assert row_sharding(sharding, heads, prompts).spread_over == axes


@pytest.mark.parametrize(
    "shape, heads, prompts, copies",
    [((8, 1), 6, 8, 8), ((2, 4), 6, 8, 8), ((2, 4), 8, 8, 2), ((2, 4), 8, 3, 1), ((1, 8), 8, 8, 1)],
)
def test_what_all_rows_share_has_a_copy_for_each_shard_of_them(shape, heads, prompts, copies):
    sharding = meshes.model_sharding(meshes.make_mesh(*shape))
    table = jnp.arange(12.0).reshape(3, 4)
    found = jax.jit(lambda x: copy_per_shard(x, sharding, heads, prompts))(table)
    np.testing.assert_array_equal(found, [table] * copies)


def test_without_a_mesh_rows_stay_as_they_are():
    assert row_sharding(UNSHARDED, 6, 8).spread_over == ()
    x = jnp.ones((8, 3))
    rows = row_sharding(UNSHARDED, 6, 8)
    assert rows.spread(x) is x and rows.gather(x) is x and rows.scatter(x) is x


def attention_flops(rows, length, keys, kernels):
    """Of one layer by hand: products with kernels [E, H·D], scores and mixtures of values."""
    return 2 * rows * length * HEADS * DIM * (kernels * EMBED + 2 * keys)


def test_chips_share_attention_and_gather_activations_only():
    """The encoder alone: its products and its collectives, by hand."""
    boxed = jax.eval_shape(model_of().init, jax.random.key(0))
    params, inputs = nn.meta.unbox(boxed), jax.ShapeDtypeStruct((PROMPTS, SOURCE), jnp.int32)
    mesh = meshes.make_mesh(2, 4)
    model = model_of(meshes.model_sharding(mesh))

    def encode(params, inputs, targets):
        return model.encode(params, inputs).hidden

    compiled = lower(mesh, encode, (params, inputs, inputs), boxed)[0].compile()
    cost = program_cost(compiled.as_text())
    mlp = 2 * PROMPTS * SOURCE * 3 * EMBED * MLP
    by_hand = DEPTH * (attention_flops(PROMPTS, SOURCE, SOURCE, 4) + mlp) / 8
    assert cost.flops == pytest.approx(by_hand, rel=0.03)
    gathered = [one for one in cost.collectives if one.kind == "all-gather"]
    states = 4 * PROMPTS // 2 * SOURCE * EMBED  # bytes of the rows of one place on the data axis
    assert sum(one.count for one in gathered) == DEPTH
    assert all(one.bytes == states for one in gathered), gathered
