"""T5 against Hugging Face's and T5X's numbers, and its three ways to run against one another."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models import layers, t5
from tests.models import golden
from tests.models.golden import FAMILIES


def logits_of(config, params, inputs, decoder_inputs):
    apply = jax.jit(t5.T5(config).apply)
    return apply({"params": params}, jnp.asarray(inputs), jnp.asarray(decoder_inputs))


@pytest.fixture
def in_blocks(monkeypatch):
    """Attention of short inputs too, in blocks of two to eight queries."""
    sizes = {"BLOCKED_FROM": 12, "LARGEST_BLOCK": 8, "SMALLEST_BLOCK": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(layers, name, value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "long_"])
def test_logits_equal_hugging_face(shared, family, prefix):
    config, params, want = golden.read(shared / "golden/hf" / family)
    got = logits_of(config, params, want[prefix + "input_ids"], want[prefix + "decoder_input_ids"])
    real = want[prefix + "decoder_attention_mask"] == 1
    np.testing.assert_allclose(got[real], want[prefix + "logits"][real], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_attention_in_blocks_equal_hugging_face(shared, family, in_blocks):
    test_logits_equal_hugging_face(shared, family, "long_")


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_and_gradients_in_blocks_equal_hugging_face(shared, family, in_blocks):
    test_encoder_and_gradients_equal_hugging_face(shared, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_and_gradients_equal_hugging_face(shared, family):
    config, params, want = golden.read(shared / "golden/hf" / family)
    inputs = jnp.asarray(want["input_ids"])

    def cross_entropy(params):
        logits = logits_of(config, params, want["input_ids"], want["decoder_input_ids"])
        labels = want["labels"]
        log_probs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
        return -jnp.sum(chosen * (labels >= 0)) / np.sum(labels >= 0)

    @jax.jit
    def encode_and_learn(params):
        encoded = t5.as_seq2seq(config).encode(params, inputs)
        return encoded.hidden, jax.value_and_grad(cross_entropy)(params)

    hidden, (loss, gradients) = encode_and_learn(params)
    real = want["attention_mask"] == 1
    np.testing.assert_allclose(hidden[real], want["encoder_last_hidden"][real], atol=1e-4)
    np.testing.assert_allclose(loss, want["ce_mean_f64"], rtol=1e-5)
    layer = gradients["decoder"]["layers_0"]
    pairs = {
        "shared.weight": gradients["token_embedder"]["embedding"],
        "encoder.block.1.layer.0.SelfAttention.o.weight": gradients["encoder"]["layers_1"][
            "attention"
        ]["out"]["kernel"].T,
        "decoder.block.0.layer.0.SelfAttention.q.weight": layer["self_attention"]["query"][
            "kernel"
        ].T,
        "decoder.block.0.layer.2.layer_norm.weight": layer["pre_mlp_layer_norm"]["scale"],
    }
    for name, got in pairs.items():
        reference = want[f"grad_f64/{name}"]
        error = np.linalg.norm(got - reference) / np.linalg.norm(reference)
        assert error < 1e-4, f"{name}: relative error {error}"


def test_logits_equal_t5x(shared):
    config, params, _ = golden.read(shared / "golden/hf/t5v11_tiny")
    want = np.load(next((shared / "golden/t5x").glob("t5v11_tiny_from_hf/**/golden.npz")))
    got = logits_of(config, params, want["encoder_input_tokens"], want["decoder_input_tokens"])
    real = want["decoder_target_tokens"] > 0
    np.testing.assert_allclose(got[real], want["logits"][real], atol=1e-4)


def test_parameter_names_and_shapes_are_t5x(shared):
    want = np.load(next((shared / "golden/t5x").glob("t5v11_tiny_from_hf/**/golden.npz")))
    config, _, _ = golden.read(shared / "golden/hf/t5v11_tiny")
    shapes = jax.eval_shape(t5.as_seq2seq(config).init, jax.random.key(0))
    flat = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(shapes))[0]
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat}
    assert paths == set(want["param_paths"].tolist())


@pytest.mark.parametrize(
    "family",
    [
        "umt5_tiny",  # a relative bias per layer
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("t5v10_tiny", "t5v11_tiny", "mt5_tiny")
        ),
    ],
)
def test_stacked_rematerialised_layers_change_nothing(shared, family):
    config, params, want = golden.read(shared / "golden/hf" / family)
    stacked = dataclasses.replace(config, stacked_layers=True, remat=True)
    names = jax.eval_shape(t5.as_seq2seq(stacked).init, jax.random.key(0))
    stacked_params = t5.stack_layers(params)
    assert jax.tree.structure(nn.meta.unbox(names)) == jax.tree.structure(stacked_params)
    query = names["decoder"]["layers"]["self_attention"]["query"]["kernel"]
    assert query.names == ("layers", "embed", "joined_kv")
    jax.tree.map(np.testing.assert_array_equal, t5.unstack_layers(stacked_params), params)

    got = logits_of(stacked, stacked_params, want["input_ids"], want["decoder_input_ids"])
    real = want["decoder_attention_mask"] == 1
    np.testing.assert_allclose(got[real], want["logits"][real], atol=1e-4)

    def gradients(config, params):
        def loss(params):
            logits = logits_of(config, params, want["input_ids"], want["decoder_input_ids"])
            return jnp.mean(jnp.square(logits))

        return jax.jit(jax.grad(loss))(params)

    got, plain = t5.unstack_layers(gradients(stacked, stacked_params)), gradients(config, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, plain)


def test_bfloat16_compute_stays_near_float32(shared):
    config, params, want = golden.read(shared / "golden/hf/t5v11_tiny")
    half = dataclasses.replace(config, dtype="bfloat16")
    got = logits_of(half, params, want["input_ids"], want["decoder_input_ids"])
    real = want["decoder_attention_mask"] == 1
    assert got.dtype == jnp.float32
    error = np.abs(got[real] - want["logits_f64"][real])
    assert 1e-4 < error.max() < 0.5, "bfloat16 has 8 bits: not exact, not far off"
    assert error.mean() < 0.05


def test_head_of_another_width_than_the_embedding():
    config = t5.T5Config(
        vocab_size=40, emb_dim=12, num_heads=3, head_dim=8, mlp_dim=16, num_encoder_layers=1,
        num_decoder_layers=2,
    )  # fmt: skip
    params = nn.meta.unbox(jax.eval_shape(t5.as_seq2seq(config).init, jax.random.key(0)))
    assert params["decoder"]["layers_1"]["self_attention"]["out"]["kernel"].shape == (24, 12)
    assert "layers_1" not in params["encoder"]
    tokens = jnp.array([[5, 6, 1]])
    logits = jax.eval_shape(t5.T5(config).apply, {"params": params}, tokens, tokens)
    assert logits.shape == (1, 3, 40)


def test_initial_parameters_have_the_widths_of_t5():
    """T5 folds 1/√head_dim into the queries; all else has fan-in variance, the table variance 1."""
    config = t5.T5Config(
        vocab_size=200, emb_dim=64, num_heads=8, head_dim=16, mlp_dim=96, num_encoder_layers=1,
        num_decoder_layers=1,
    )  # fmt: skip
    params = nn.meta.unbox(t5.as_seq2seq(config).init(jax.random.key(0)))
    layer = params["decoder"]["layers_0"]
    for name in ("self_attention", "encoder_decoder_attention"):
        for kernel, width in (
            ("query", (64 * 16) ** -0.5), ("key", 64**-0.5), ("value", 64**-0.5),
            ("out", (8 * 16) ** -0.5),
        ):  # fmt: skip
            assert np.std(layer[name][kernel]["kernel"]) == pytest.approx(width, rel=0.05)
    assert np.std(layer["mlp"]["wi_0"]["kernel"]) == pytest.approx(64**-0.5, rel=0.05)
    assert np.std(layer["mlp"]["wo"]["kernel"]) == pytest.approx(96**-0.5, rel=0.05)
    assert np.std(params["token_embedder"]["embedding"]) == pytest.approx(1, rel=0.05)
    assert np.std(params["decoder"]["logits_dense"]["kernel"]) == pytest.approx(0.125, rel=0.05)
    np.testing.assert_array_equal(params["decoder"]["decoder_norm"]["scale"], 1)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("dtype", "float16", "choose one of 'float32', 'bfloat16'"),
        ("mlp_activations", ("gelu", "gelu", "gelu"), r"one \(v1.0\) or two \(gated\)"),
    ],
)
def test_a_config_that_means_nothing_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        t5.T5Config(**{field: value})


def test_gradients_in_bfloat16_are_those_of_float32_but_for_its_8_bits(shared):
    """Every product's result is off by up to 2⁻⁹, and some 40 follow one another, forth and back:

    by chance √40 · 2⁻⁹ = 0.012 of a gradient's norm, and up to five times that of single ones.
    """
    config, params, want = golden.read(shared / "golden/hf/t5v11_tiny")

    def gradients(dtype):
        half = dataclasses.replace(config, dtype=dtype)

        def cross_entropy(params):
            logits = logits_of(half, params, want["input_ids"], want["decoder_input_ids"])
            labels = want["labels"]
            chosen = jnp.take_along_axis(
                jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], -1
            )[..., 0]
            return -jnp.sum(chosen * (labels >= 0)) / np.sum(labels >= 0)

        return jax.tree.leaves(jax.jit(jax.grad(cross_entropy))(params))

    pairs = list(zip(gradients("bfloat16"), gradients("float32"), strict=True))
    assert {got.dtype for got, _ in pairs} == {jnp.dtype("float32")}
    errors = [np.linalg.norm(got - whole) / np.linalg.norm(whole) for got, whole in pairs]
    assert max(errors) < 0.06 and 0.005 < np.mean(errors) < 0.025
