"""Low-rank adapters against NumPy, and against the base with kernels that were merged by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.sampling import sample
from gkd.errors import InvalidValue
from gkd.models import lora
from gkd.models.interface import project
from gkd.models.lora import LoRA
from gkd.models.t5 import T5Config, as_seq2seq

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
    return model, nn.meta.unbox(model.init(jax.random.PRNGKey(1)))


BASE, PARAMS = base_model()
MODEL = lora.adapt(BASE, SETTINGS)


def adapters_of(model=MODEL, seed=2):
    """Adapters whose B is not zero, as after some training."""
    tree = nn.meta.unbox(model.init(jax.random.PRNGKey(seed)))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * random.standard_normal(leaf.shape), jnp.float32), tree
    )


def logits(model, params):
    encoded = model.encode(params, TOKENS)
    return project(model.decode_hidden(params, encoded, TOKENS).last, model.head(params))


def by_name(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name in tree for k, v in by_name(tree[name], f"{prefix}/{name}").items()}


def test_exactly_the_targets_are_adapted_with_shapes_of_the_rank():
    found = by_name(nn.meta.unbox(MODEL.init(jax.random.PRNGKey(0))))
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
    fresh = lora.Adapted(PARAMS, nn.meta.unbox(MODEL.init(jax.random.PRNGKey(0))))
    np.testing.assert_array_equal(logits(MODEL, fresh), logits(BASE, PARAMS))


def test_logits_and_samples_are_those_of_kernels_merged_in_numpy():
    adapters = adapters_of()
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
    params = lora.Adapted(PARAMS, adapters)
    np.testing.assert_allclose(logits(MODEL, params), logits(BASE, merged), atol=1e-5)
    assert np.abs(logits(MODEL, params) - logits(BASE, PARAMS)).max() > 0.05
    valid = jnp.arange(32) > 0

    def written(model, params):
        encoded = model.encode(params, TOKENS)
        return sample(
            model, params, encoded, jax.random.key(0), max_length=5, valid=valid, rows=jnp.arange(4)
        ).tokens  # fmt: skip

    np.testing.assert_array_equal(written(MODEL, params), written(BASE, merged))


def test_stacked_layers_have_an_adapter_each():
    both = [base_model(2, stacked_layers=stacked) for stacked in (False, True)]
    settings = LoRA(rank=2, alpha=4, targets=("wi_0",))
    models = [lora.adapt(model, settings) for model, _ in both]
    single = adapters_of(models[0])
    stacked = {}
    for part in ("encoder", "decoder"):
        layers = [single[part][f"layers_{number}"] for number in (0, 1)]
        stacked[part] = {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    wanted = nn.meta.unbox(models[1].init(jax.random.PRNGKey(0)))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), stacked, wanted)
    results = []
    for model, (_, params), adapters in zip(models, both, (single, stacked), strict=True):
        if adapters is stacked:  # the same base too
            params = jax.tree.map(lambda leaf: leaf, both[1][1])
            for part in ("encoder", "decoder"):
                layers = [both[0][1][part][f"layers_{number}"] for number in (0, 1)]
                same = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
                rest = {k: v for k, v in both[0][1][part].items() if "layers_" not in k}
                params[part] = {**rest, "layers": same}
            params["token_embedder"] = both[0][1]["token_embedder"]
        results.append(logits(model, lora.Adapted(params, adapters)))
    np.testing.assert_allclose(*results, atol=1e-5)


def test_only_the_adapters_get_a_gradient_where_only_they_are_trained():
    adapters = adapters_of()
    gradient = jax.grad(lambda a: jnp.sum(logits(MODEL, lora.Adapted(PARAMS, a)) ** 2))(adapters)
    assert jax.tree.structure(gradient) == jax.tree.structure(adapters)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_adapters_are_sharded_as_the_kernels_they_belong_to():
    boxed = MODEL.init(jax.random.PRNGKey(0))
    pair = boxed["decoder"]["layers_0"]["mlp"]["wo"]["kernel"]
    assert pair["a"].names == ("mlp", None) and pair["b"].names == (None, "embed")


def test_a_target_that_is_not_there_is_named_with_what_is():
    with pytest.raises(InvalidValue, match="'q_proj' names no kernel.*key, .*query.*wi_0"):
        lora.adapt(BASE, LoRA(rank=1, alpha=1, targets=("query", "q_proj")))
