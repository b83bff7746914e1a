"""T5X's own Transformer behind the interface, against T5X's golden numbers and our own T5."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gkd.checkpoints.t5x_format import load_t5x
from gkd.decode.sampling import sample
from gkd.models import t5, t5x_adapter
from gkd.models.interface import project
from gkd.parallel import mesh as meshes
from tests.random_params import random_params

TINY = {
    "vocab_size": 384, "emb_dim": 32, "num_heads": 4, "head_dim": 8, "mlp_dim": 64,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "mlp_activations": ("gelu", "linear"),
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    """T5X's example network."""
    pytest.importorskip(
        "t5x", reason="needs T5X, which is on no package index: put a checkout on PYTHONPATH"
    )
    return pytest.importorskip("t5x.examples.t5.network")


def transformer(network, **changes):
    return network.Transformer(network.T5Config(**{"dropout_rate": 0.0, **TINY, **changes}))


@pytest.fixture(scope="module")
def adapted(network):
    return t5x_adapter.adapt(transformer(network))


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/t5x/t5v11_tiny_from_hf"
    params = jax.tree.map(jnp.asarray, load_t5x(folder / "checkpoint_0"))
    return params, dict(np.load(folder / "golden.npz"))


def states(model, params, want):
    encoded = model.encode(params, jnp.asarray(want["encoder_input_tokens"]))
    return model.decode_hidden(params, encoded, jnp.asarray(want["decoder_input_tokens"])).last


def test_logits_and_states_equal_golden_ones_and_ours(adapted, golden):
    params, want = golden
    real = want["decoder_target_tokens"] > 0
    hidden = jax.jit(lambda p: states(adapted.build(), p, want))(params)
    logits = project(hidden, adapted.build().head(params))
    np.testing.assert_allclose(logits[real], want["logits"][real], atol=1e-4)
    ours = jax.jit(lambda p: states(t5.as_seq2seq(adapted.config), p, want))(params)
    np.testing.assert_allclose(hidden[real], ours[real], atol=1e-5)


def test_greedy_tokens_equal_golden_ones(adapted, golden):
    params, want = golden
    valid = jnp.ones(384, bool).at[0].set(False)

    @jax.jit
    def write(params, inputs):
        encoded = adapted.build().encode(params, inputs)
        options = {"max_length": 20, "valid": valid, "temperature": 0.0}
        return sample(adapted.build(), params, encoded, jax.random.PRNGKey(0), **options)

    got = write(params, jnp.asarray(want["encoder_input_tokens"]))
    np.testing.assert_array_equal(got.tokens, want["greedy_tokens"])


def test_gradients_equal_golden_ones(adapted, golden):
    params, want = golden
    targets = jnp.asarray(want["decoder_target_tokens"])

    def cross_entropy(params):
        hidden = states(adapted.build(), params, want)
        log_probs = jax.nn.log_softmax(project(hidden, adapted.build().head(params)))
        chosen = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
        return -jnp.sum(chosen * (targets > 0)) / jnp.sum(targets > 0)

    gradients = jax.jit(jax.grad(cross_entropy))(params)
    query = gradients["decoder"]["layers_0"]["self_attention"]["query"]["kernel"]
    pairs = {
        "token_embedder/embedding": gradients["token_embedder"]["embedding"],
        "decoder/layers_0/self_attention/query/kernel": query,
    }
    for name, got in pairs.items():
        reference = want[f"grad/{name}"]
        error = np.linalg.norm(got - reference) / np.linalg.norm(reference)
        assert error < 1e-4, f"{name}: relative error {error}"


def test_tied_head_equals_t5x_logits(network):
    module = transformer(network, logits_via_embedding=True, mlp_activations=("relu",))
    adapted = t5x_adapter.adapt(module)
    params = random_params(adapted.build())
    inputs = jnp.array([[5, 9, 1, 0]])
    outputs = jnp.array([[0, 7, 8]])

    @jax.jit
    def both(params):
        encoded = adapted.build().encode(params, inputs)
        hidden = adapted.build().decode_hidden(params, encoded, outputs).last
        theirs = (inputs, outputs, outputs + 1)
        want = module.apply({"params": params}, *theirs, enable_dropout=False)
        return project(hidden, adapted.build().head(params)), want

    np.testing.assert_allclose(*both(params), atol=1e-5)


def test_parameters_are_sharded_by_the_logical_axes(adapted):
    boxed = jax.eval_shape(adapted.build().init, jax.random.PRNGKey(0))
    got = meshes.parameter_shardings(meshes.make_mesh(data=4, model=2), boxed)
    assert got["token_embedder"]["embedding"].spec == PartitionSpec("model", None)
    layer = got["decoder"]["layers_1"]
    assert layer["self_attention"]["query"]["kernel"].spec == PartitionSpec(None, "model")
    assert layer["mlp"]["wo"]["kernel"].spec == PartitionSpec("model", None)
    assert got["encoder"]["relpos_bias"]["rel_embedding"].spec == PartitionSpec("model", None)
    assert layer["pre_mlp_layer_norm"]["scale"].spec == PartitionSpec(None)


def test_dropout_acts_only_with_a_key(network, golden):
    params, want = golden
    module = transformer(network, dropout_rate=0.5)
    model = t5x_adapter.adapt(module).build()
    inputs, outputs = (jnp.asarray(want[f"{n}coder_input_tokens"][:1]) for n in ("en", "de"))
    targets = jnp.maximum(jnp.asarray(want["decoder_target_tokens"][:1]), 1)
    key = jax.random.PRNGKey(3)

    @jax.jit
    def both(params, rng):
        encoded = model.encode(params, inputs, dropout_rng=rng)
        hidden = model.decode_hidden(params, encoded, outputs, dropout_rng=rng).last
        options = {
            "enable_dropout": rng is not None,
            "rngs": {"dropout": rng} if rng is not None else None,
        }
        encoded = module.apply({"params": params}, inputs, method="encode", **options)
        theirs = (encoded, inputs, outputs, targets)
        want = module.apply({"params": params}, *theirs, method="decode", **options)
        return project(hidden, model.head(params)), want

    dropped, plain = both(params, key), both(params, None)
    np.testing.assert_allclose(*dropped, atol=1e-4)
    np.testing.assert_allclose(*plain, atol=1e-4)
    assert np.abs(dropped[0] - plain[0]).max() > 0.1


def test_another_module_is_refused(network):
    with pytest.raises(ValueError, match="Dense is no T5X Transformer: it has no vocab_size"):
        t5x_adapter.adapt(nn.Dense(3))
    scanned = pytest.importorskip("t5x.examples.scalable_t5.network")
    module = scanned.Transformer(scanned.T5Config(**TINY))
    with pytest.raises(ValueError, match="other parameters than T5X's examples.t5 Transformer"):
        t5x_adapter.adapt(module)


def test_config_is_ours(network):
    module = transformer(network, dropout_rate=0.25, dtype=jnp.bfloat16)
    config = t5x_adapter.adapt(module).config
    assert config == t5.T5Config(**TINY, dropout_rate=0.25, dtype="bfloat16")
    assert dataclasses.is_dataclass(config)
