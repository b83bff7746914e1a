"""Inner layers of T5's decoder: states and attention against smaller models and NumPy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models import t5, uncached
from gkd.models.interface import project, with_inner_layer
from gkd.models.scoring import score_tokens
from gkd.parallel import mesh as meshes
from gkd.parallel.model_sharding import UNSHARDED

VOCAB, PROMPTS, SAMPLES, LENGTH, DEPTH, HEADS = 16, 4, 2, 6, 3, 3
CONFIG = t5.T5Config(
    vocab_size=VOCAB, emb_dim=8, num_heads=HEADS, head_dim=4, mlp_dim=12,
    num_encoder_layers=1, num_decoder_layers=DEPTH,
)  # fmt: skip
PROMPT_TOKENS = np.random.RandomState(1).randint(2, VOCAB, (PROMPTS, 5))
PROMPT_TOKENS[::2, 3:] = 0
TOKENS = np.random.RandomState(2).randint(2, VOCAB, (PROMPTS * SAMPLES, LENGTH))
WAYS = {
    "unstacked": {},
    "stacked": {"stacked_layers": True},
    "remat": {"remat": True},
    "stacked remat": {"stacked_layers": True, "remat": True},
}


@functools.cache
def parameters(per_layer=False):
    config = dataclasses.replace(CONFIG, relative_bias_per_layer=per_layer)
    shapes = nn.meta.unbox(jax.eval_shape(t5.as_seq2seq(config).init, jax.random.key(0)))
    random = np.random.RandomState(0)
    return jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape) / np.sqrt(x.shape[0]), x.dtype), shapes
    )


def decoded(params, layer=None, dropout_rng=None, sharding=UNSHARDED, **changes):
    """`Hidden` of the tokens; the parameters are not stacked."""
    config = dataclasses.replace(CONFIG, **changes)
    model = t5.as_seq2seq(config, sharding)
    model = model if layer is None else with_inner_layer(model, layer)
    params = t5.stack_layers(params) if config.stacked_layers else params
    encoded = model.encode(params, jnp.asarray(PROMPT_TOKENS))
    return model.decode_hidden(params, encoded, jnp.asarray(TOKENS), dropout_rng=dropout_rng)


def first_layers(params, count):
    """The parameters of a decoder of fewer layers."""
    decoder = {
        name: value
        for name, value in params["decoder"].items()
        if not name.startswith("layers_") or int(name.removeprefix("layers_")) < count
    }
    return {**params, "decoder": decoder}


@functools.cache
def whole_and_shorter(layer, per_layer):
    """`Hidden` of the decoder, and of its first layers alone; neither stacked."""
    run, params = (
        functools.partial(decoded, relative_bias_per_layer=per_layer),
        parameters(per_layer),
    )
    shorter = jax.jit(functools.partial(run, num_decoder_layers=layer))
    return jax.jit(run)(params), shorter(first_layers(params, layer))


@pytest.mark.parametrize(
    ("layer", "per_layer"),
    [
        (1, False), (2, True), pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_an_inner_layer_is_the_last_of_a_decoder_that_ends_there(layer, way, per_layer):
    changes = {"relative_bias_per_layer": per_layer, **WAYS[way]}
    got = jax.jit(functools.partial(decoded, layer=layer, **changes))(parameters(per_layer))
    whole, shorter = whole_and_shorter(layer, per_layer)
    np.testing.assert_allclose(got.inner.hidden, shorter.last, atol=1e-5)
    assert whole.inner is None
    np.testing.assert_allclose(got.last, whole.last, atol=1e-5)


def numpy_attention(x, layer, bias):
    """Mean over the heads of the self-attention of states [N, T, E], float64."""
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    x = x * np.asarray(layer["pre_self_attention_layer_norm"]["scale"], np.float64)
    query, key = (
        (x @ np.asarray(layer["self_attention"][name]["kernel"], np.float64)).reshape(
            *x.shape[:2], HEADS, -1
        )
        for name in ("query", "key")
    )
    found = np.zeros((len(x), LENGTH, LENGTH))
    for row in range(len(x)):
        for head in range(HEADS):
            for t in range(LENGTH):
                logits = query[row, t, head] @ key[row, : t + 1, head].T
                logits = logits + bias[head, t - np.arange(t + 1)]  # near: a bucket per distance
                weights = np.exp(logits - logits.max())
                found[row, t, : t + 1] += weights / weights.sum() / HEADS
    return found


@pytest.mark.parametrize("way", ["unstacked", "stacked remat"])
def test_attention_is_that_of_numpy(way):
    """Layers that add nothing leave the embeddings to the last layer's attention, too."""
    params = jax.tree.map(lambda x: x, parameters())
    for i in range(DEPTH):
        layer = params["decoder"][f"layers_{i}"]
        for part in ("self_attention", "encoder_decoder_attention"):
            layer[part]["out"]["kernel"] = jnp.zeros_like(layer[part]["out"]["kernel"])
        layer["mlp"]["wo"]["kernel"] = jnp.zeros_like(layer["mlp"]["wo"]["kernel"])
    inner = jax.jit(functools.partial(decoded, layer=2, **WAYS[way]))(params).inner
    x = np.asarray(params["token_embedder"]["embedding"], np.float64)[TOKENS]
    bias = np.asarray(params["decoder"]["relpos_bias"]["rel_embedding"], np.float64)
    for got, i in ((inner.attention, 1), (inner.last_attention, 2)):
        want = numpy_attention(x, params["decoder"][f"layers_{i}"], bias)
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert got.dtype == jnp.float32


def test_attention_stays_float32_in_a_bfloat16_model():
    inner = jax.jit(functools.partial(decoded, layer=1, dtype="bfloat16"))(parameters()).inner
    assert inner.hidden.dtype == jnp.bfloat16
    for attention in (inner.attention, inner.last_attention):
        np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-5)


@functools.cache
def gradients(way):
    config = dataclasses.replace(CONFIG, **WAYS[way])
    model = with_inner_layer(t5.as_seq2seq(config), 2)
    random = np.random.RandomState(3)
    weights = random.normal(size=(3, PROMPTS * SAMPLES, LENGTH, LENGTH))

    def loss(params):
        params = t5.stack_layers(params) if config.stacked_layers else params
        encoded = model.encode(params, jnp.asarray(PROMPT_TOKENS))
        logits = score_tokens(model, params, encoded, jnp.asarray(TOKENS))
        inner = logits.inner
        read = jax.nn.logsumexp(project(inner.hidden, logits.head), axis=-1)
        attended = jnp.sum(weights[1] * inner.attention + weights[2] * inner.last_attention)
        return jnp.sum(weights[0, ..., 0] * read) + attended

    return jax.jit(jax.value_and_grad(loss))(parameters())


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_gradients_are_alike_however_the_layers_run(way):
    (value, found), (want_value, want) = gradients(way), gradients("unstacked")
    assert float(value) == pytest.approx(float(want_value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, want)


def test_nothing_above_the_inner_layer_has_a_gradient_from_it():
    def loss(params):
        return jnp.sum(decoded(params, layer=2).inner.hidden[..., 0])

    decoder = jax.jit(jax.grad(loss))(parameters())["decoder"]
    norms = [
        sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(decoder[f"layers_{i}"]))
        for i in range(DEPTH)
    ]
    assert norms[0] > 0.1 and norms[1] > 0.1 and norms[2] == 0
    assert float(jnp.abs(decoder["decoder_norm"]["scale"]).sum()) > 0.1


@pytest.mark.parametrize("model_parallelism", [1, 2])  # two do not divide three heads
def test_eight_devices_find_the_same(model_parallelism):
    mesh = meshes.make_mesh(model=model_parallelism, devices=jax.devices()[:4])
    sharding = meshes.model_sharding(mesh, meshes.rules_for(False))
    want = jax.jit(functools.partial(decoded, layer=2))(parameters())
    with mesh:
        got = jax.jit(functools.partial(decoded, layer=2, sharding=sharding))(parameters())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_dropout_of_the_last_layer_is_the_same_beside_an_inner_one():
    options = {"dropout_rate": 0.5, "dropout_rng": jax.random.key(1)}
    plain, got = (
        jax.jit(functools.partial(decoded, layer=layer, **options))(parameters())
        for layer in (None, 2)
    )
    np.testing.assert_allclose(got.last, plain.last, atol=1e-6)
    dropped = np.asarray(got.inner.hidden == 0)
    assert 0.3 < dropped[:, 0].mean() < 0.7
    np.testing.assert_array_equal(dropped, np.broadcast_to(dropped[:, :1], dropped.shape))
    np.testing.assert_allclose(got.inner.attention.sum(-1), 1.0, atol=1e-5)  # before its dropout


@pytest.mark.parametrize("layer", [0, DEPTH, -1])
def test_a_layer_that_is_not_below_the_last_is_refused(layer):
    message = f"InnerLayerLoss.layer is {layer}: choose from 1 to 2, .* last layer, which is 3"
    with pytest.raises(ValueError, match=message):
        with_inner_layer(t5.as_seq2seq(CONFIG), layer)


def test_a_decoder_of_one_layer_has_no_inner_one():
    with pytest.raises(ValueError, match="two decoder layers or more"):
        with_inner_layer(t5.as_seq2seq(dataclasses.replace(CONFIG, num_decoder_layers=1)), 1)


def test_a_model_of_ones_own_has_none():
    own = uncached.encoder_decoder(
        init=lambda rng: {}, encode=lambda params, tokens: tokens,
        decode=lambda *arguments: None, vocab_size=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="models of your own give their last only"):
        with_inner_layer(own, 1)
