"""Low-rank adapters against NumPy, and against the base with kernels that were merged by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.errors import InvalidValue
from gkd.models import lora
from gkd.models.interface import project
from gkd.models.lora import LoRA
from gkd.models.t5 import T5Config, as_seq2seq
from tests.random_params import random_params

SETTINGS = LoRA(rank=3, alpha=12, targets=("query", "wo", "decoder/layers_0/self_attention/value"))
KERNELS = {  # of one encoder and one decoder layer: [in, out]
    "encoder/layers_0/attention/query": (16, 8),
    "encoder/layers_0/mlp/wo": (24, 16),
    "decoder/layers_0/self_attention/query": (16, 8),
    "decoder/layers_0/encoder_decoder_attention/query": (16, 8),
    "decoder/layers_0/mlp/wo": (24, 16),
    "decoder/layers_0/self_attention/value": (16, 8),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(2, 30, (4, 6)), jnp.int32)


def base_model(layers=1, **options):
    config = T5Config(
        vocab_size=32, emb_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=layers,
        num_decoder_layers=layers, **options,
    )  # fmt: skip
    model = as_seq2seq(config)
    return model, random_params(model)


BASE, PARAMS = base_model()
BOXED = jax.eval_shape(BASE.init, jax.random.PRNGKey(0))


def new(boxed=BOXED, settings=SETTINGS):
    return lora.new_adapters(boxed, settings, jax.random.PRNGKey(3))


@functools.cache
def adapter_shapes():
    return jax.eval_shape(new)


def trained(adapters, seed=2):
    """Adapters whose B is not zero, as after some training."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * random.standard_normal(leaf.shape), jnp.float32),
        nn.meta.unbox(adapters),
    )


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params):
    encoded = model.encode(params, TOKENS)
    return project(model.decode_hidden(params, encoded, TOKENS).last, model.head(params))


def by_name(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name in tree for k, v in by_name(tree[name], f"{prefix}/{name}").items()}


def test_exactly_the_targets_are_adapted_with_shapes_of_the_rank():
    found = by_name(nn.meta.unbox(new()))
    want = {}
    for module, (rows, columns) in KERNELS.items():
        want[f"/{module}/kernel/a"], want[f"/{module}/kernel/b"] = (rows, 3), (3, columns)
    assert {name: leaf.shape for name, leaf in found.items()} == want
    for name, leaf in found.items():
        if name.endswith("/b"):
            assert not np.any(leaf)
        else:  # as PEFT: uniform in ±1/√in
            bound = 1 / np.sqrt(leaf.shape[0])
            assert 0.7 * bound < np.abs(leaf).max() <= bound
    assert len({float(leaf[0, 0]) for name, leaf in found.items() if name.endswith("/a")}) == 6


def test_new_adapters_change_nothing():
    same = lora.Base(PARAMS, SETTINGS).with_adapters(nn.meta.unbox(new()))
    jax.tree.map(np.testing.assert_array_equal, same, PARAMS)


def test_logits_are_those_of_kernels_merged_in_numpy():
    adapters = trained(adapter_shapes())
    kernels = {name: np.float64(leaf) for name, leaf in by_name(PARAMS).items()}
    pairs = by_name(adapters)
    for module in KERNELS:
        a, b = (np.float64(pairs[f"/{module}/kernel/{name}"]) for name in "ab")
        kernels[f"/{module}/kernel"] += 12 / 3 * a @ b
    merged = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(
            kernels["/" + jax.tree_util.keystr(path, simple=True, separator="/")], jnp.float32
        ),
        PARAMS,
    )
    params = lora.Base(PARAMS, SETTINGS).with_adapters(adapters)
    np.testing.assert_allclose(logits(BASE, params), logits(BASE, merged), atol=1e-5)
    assert np.abs(logits(BASE, params) - logits(BASE, PARAMS)).max() > 0.05


def test_stacked_layers_have_an_adapter_each():
    model, _ = base_model(2, stacked_layers=True)
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    settings = LoRA(rank=2, alpha=6, targets=("wi_0",))
    adapters = trained(new(boxed, settings))
    pair = adapters["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert (pair["a"].shape, pair["b"].shape) == ((2, 16, 2), (2, 2, 24))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), nn.meta.unbox(boxed))
    found = lora.Base(zeros, settings).with_adapters(adapters)["encoder"]["layers"]["mlp"]
    for layer in (0, 1):
        want = 3 * np.float64(pair["a"][layer]) @ np.float64(pair["b"][layer])
        np.testing.assert_allclose(found["wi_0"]["kernel"][layer], want, atol=1e-6)
    assert not np.any(found["wo"]["kernel"])


def test_the_gradient_is_that_of_the_product():
    """dL/dA = s · dL/dW · Bᵀ and dL/dB = s · Aᵀ · dL/dW."""
    adapters, base = trained(adapter_shapes()), lora.Base(PARAMS, SETTINGS)

    def loss(params):
        return jnp.sum(logits(BASE, params) ** 2)

    gradient = jax.jit(jax.grad(lambda a: loss(base.with_adapters(a))))(adapters)
    kernels = by_name(jax.jit(jax.grad(loss))(base.with_adapters(adapters)))
    pairs, found = by_name(adapters), by_name(gradient)
    assert found.keys() == pairs.keys()
    for module in KERNELS:
        a, b = (np.float64(pairs[f"/{module}/kernel/{name}"]) for name in "ab")
        slope = np.float64(kernels[f"/{module}/kernel"])
        want = {"a": 4 * slope @ b.T, "b": 4 * a.T @ slope}
        for name in "ab":
            got = found[f"/{module}/kernel/{name}"]
            np.testing.assert_allclose(got, want[name], rtol=1e-3, atol=1e-4)
            assert np.abs(got).max() > 1e-3


def test_adapters_are_sharded_as_the_kernels_they_belong_to():
    pair = new()["decoder"]["layers_0"]["mlp"]["wo"]["kernel"]
    assert pair["a"].names == ("mlp", None) and pair["b"].names == (None, "embed")


def test_a_target_that_is_not_there_is_named_with_what_is():
    with pytest.raises(InvalidValue, match="'q_proj' names no kernel.*key, .*query.*wi_0"):
        new(settings=LoRA(rank=1, alpha=1, targets=("query", "q_proj")))


def test_a_target_in_one_layer_needs_layers_that_are_not_stacked():
    model, _ = base_model(2, stacked_layers=True)
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    target = "encoder/layers_0/attention/query"
    assert LoRA(targets=(target,)).names_a_layer and not LoRA().names_a_layer
    with pytest.raises(InvalidValue, match=f"'{target}' names one layer, but STUDENT_STACKED"):
        new(boxed, LoRA(targets=(target,)))
