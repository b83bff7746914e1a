"""The sampler against Hugging Face's greedy outputs, the softmax it draws from, and itself."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gkd.decode.sampling import _draw, _mass, sample, truncate_logits
from gkd.models import t5
from gkd.models.interface import Encoded
from gkd.parallel import mesh as meshes
from tests.decode.table_model import draw, table_model
from tests.models import golden

EVERY_ID = jnp.ones(384, bool)


@pytest.mark.parametrize(
    "family",
    [
        "t5v10_tiny",  # logits are the tied table's
        "umt5_tiny",  # a relative bias per layer
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5v11_tiny", "mt5_tiny")),
    ],
)
def test_greedy_tokens_equal_hugging_face(shared, family):
    config, params, want = golden.read(shared / "golden/hf" / family)
    model = t5.as_seq2seq(config)
    options = {"max_length": 20, "valid": EVERY_ID, "temperature": 0.0}

    @jax.jit
    def greedy(params, inputs):
        encoded = model.encode(params, inputs)
        return sample(model, params, encoded, jax.random.PRNGKey(0), **options)

    got = greedy(params, jnp.asarray(want["input_ids"]))
    np.testing.assert_array_equal(got.tokens, want["greedy_sequences"][:, 1:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probs_equal_teacher_forced_ones(shared, dtype):
    """In bfloat16, too, which rounds states to 8 bits.

    Sampler and decoder sum in another order; where float32 sums differ in their last bit, one state
    may be rounded up and the other down, by 2⁻⁸ of it. A logit then differs by up to 2⁻⁸ of the
    greatest: 0.09 here. On average over the tokens, it is far less.
    """
    config, params, want = golden.read(shared / "golden/hf/t5v11_tiny")
    config = dataclasses.replace(config, dtype=dtype)
    model = t5.as_seq2seq(config)
    inputs = jnp.asarray(want["input_ids"])
    valid = EVERY_ID.at[0].set(False).at[300:].set(False)

    @jax.jit
    def write_and_force(params, inputs):
        encoded, key = model.encode(params, inputs), jax.random.PRNGKey(3)
        got = sample(model, params, encoded, key, max_length=20, valid=valid)
        shifted = jnp.pad(got.tokens, ((0, 0), (1, 0)))[:, :-1]
        return got, t5.T5(config).apply({"params": params}, inputs, shifted)

    got, logits = write_and_force(params, inputs)
    logits = np.asarray(logits, np.float64)
    logits = np.where(valid, logits, -np.inf)
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    forced = np.take_along_axis(log_probs, np.asarray(got.tokens)[..., None], -1)[..., 0]
    written = np.arange(20) < np.asarray(got.lengths)[:, None]
    error = np.abs(np.asarray(got.log_probs)[written] - forced[written])
    if dtype == "float32":
        assert error.max() < 1e-4
    else:
        step = 2**-8 * np.abs(logits[..., np.asarray(valid)]).max()
        assert 1e-4 < error.max() < step and error.mean() < step / 8
    assert not np.asarray(got.log_probs)[~written].any()
    assert not np.asarray(got.tokens)[~written].any()
    assert np.asarray(got.tokens)[written].max() < 300, "an unusable id was written"
    assert np.asarray(got.tokens)[written].min() > 0, "pad was written"


@pytest.mark.parametrize(
    "temperature", [0.7, *(pytest.param(slow, marks=pytest.mark.slow) for slow in (1.0, 2.0))]
)
def test_frequencies_match_the_softmax(temperature):
    logits = np.array([9.0, -1.0, 0.5, 1.5, 2.0, -0.3, 0.0, 8.0])
    valid = np.array([False, True, True, True, True, True, True, False])
    got = draw([logits] * 8, 30_000, 1, temperature=temperature, valid=jnp.asarray(valid))
    counts = np.bincount(np.asarray(got.tokens)[:, 0], minlength=8)
    assert counts[0] == counts[7] == 0, "an unusable id was sampled"
    p = np.exp(logits[valid] / temperature)
    result = stats.chisquare(counts[valid], 30_000 * p / p.sum())
    assert result.pvalue > 1e-3, f"frequencies {counts[valid]} are not the softmax's"


@pytest.mark.parametrize("vocab", [48, 97, pytest.param(640, marks=pytest.mark.slow)])
def test_frequencies_match_whatever_classes_the_ids_fall_into(vocab):
    """48 ids are 2 × 3 × 8, 97 are one class, 640 are 16 × 5 × 8."""
    logits = np.random.default_rng(vocab).normal(scale=1.5, size=vocab)
    got = draw([logits] * vocab, 40_000, 3)
    counts = np.bincount(np.asarray(got.tokens)[:, 0], minlength=vocab)
    p = np.exp(logits - np.logaddexp.reduce(logits))
    assert stats.chisquare(counts, 40_000 * p / p.sum()).pvalue > 1e-3
    own = np.log(p)[np.asarray(got.tokens)[:, 0]]
    np.testing.assert_allclose(got.log_probs[:, 0], own, atol=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_choose_possible_ids(uniform):
    """Ids 13 and 34 of 48, in other classes, one with hardly any probability; and 34 alone."""
    logits = np.full((2, 48), -np.inf, np.float32)
    logits[0, 13], logits[:, 34] = -60.0, 0.0
    numbers = jnp.full((2, 2), uniform, jnp.float32)
    tokens = jax.jit(lambda logits, numbers: _draw(*_mass(logits), numbers))(logits, numbers)
    assert int(tokens[0]) in (13, 34) and int(tokens[1]) == 34


def test_top_k_and_top_p_keep_what_they_promise():
    logits = np.log([0.05, 0.4, 0.3, 0.15, 0.1])
    for options, kept in [({"top_k": 2}, [1, 2]), ({"top_p": 0.75}, [1, 2, 3])]:
        left = truncate_logits(jnp.asarray(logits, jnp.float32)[None], **options)[0]
        assert np.flatnonzero(np.isfinite(left)).tolist() == kept
    # Of the three most probable (.4, .3, .15 of .85), two hold 82%: with either option alone, or
    # the nucleus taken first, a third would be left.
    got = draw([logits] * 5, 20_000, 2, top_k=3, top_p=0.8)
    frequencies = np.bincount(np.asarray(got.tokens)[:, 0], minlength=5) / 20_000
    np.testing.assert_allclose(frequencies, [0, 4 / 7, 3 / 7, 0, 0], atol=0.015)


def test_top_p_always_keeps_the_most_probable_id():
    logits = jnp.log(jnp.array([[0.6, 0.4]]))
    kept = jnp.isfinite(truncate_logits(logits, top_p=0.01))
    np.testing.assert_array_equal(kept, [[True, False]])
    np.testing.assert_array_equal(truncate_logits(logits), logits)


def test_log_probs_are_the_models_own_whatever_was_truncated():
    logits = np.log([0.1, 0.6, 0.3])
    for options in ({"temperature": 0.0}, {"temperature": 0.5, "top_k": 1}):
        got = draw([logits] * 3, 4, 0, **options)
        own = logits[np.asarray(got.tokens)[:, 0]]
        np.testing.assert_allclose(got.log_probs[:, 0], own, rtol=1e-5)


def test_a_row_ends_with_its_eos_and_the_loop_with_the_last_row():
    # Token 0 -> 2 -> 3 -> EOS; what would follow EOS must not be written.
    chain = np.full((5, 5), -1e9)
    chain[0, 2] = chain[2, 3] = chain[3, 1] = chain[1, 4] = 0
    got = draw(chain, 2, 0, max_length=6, temperature=0.0)
    np.testing.assert_array_equal(got.tokens, [[2, 3, 1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(got.lengths, [3, 3])
    cut = draw(chain, 2, 0, max_length=2, temperature=0.0)
    np.testing.assert_array_equal(cut.tokens, [[2, 3]] * 2)
    np.testing.assert_array_equal(cut.lengths, [2, 2])

    steps = []
    model = table_model(chain, 5)
    counted = dataclasses.replace(
        model,
        decode_step=lambda w, cache, tokens, position: (
            jax.debug.callback(steps.append, position),
            model.decode_step(w, cache, tokens, position),
        )[1],
    )
    encoded = Encoded(jnp.ones((2, 1, 1)), jnp.ones((2, 1), bool))
    options = {"max_length": 50, "valid": jnp.ones(5, bool), "temperature": 0.0}
    run = jax.jit(lambda: sample(counted, {}, encoded, jax.random.PRNGKey(0), **options))
    jax.block_until_ready(run())
    jax.effects_barrier()
    assert len(steps) == 3, f"the loop ran {len(steps)} steps for rows of 3 tokens"


def small_model():
    config = t5.T5Config(
        vocab_size=96, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
        num_decoder_layers=1,
    )  # fmt: skip
    model = t5.as_seq2seq(config)
    random, shapes = np.random.RandomState(1), jax.eval_shape(model.init, jax.random.key(1))
    return model, jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape) / np.sqrt(x.shape[0]), x.dtype),
        nn.meta.unbox(shapes),
    )


def test_the_same_seed_gives_the_same_tokens_however_prompts_are_split():
    model, params = small_model()
    prompts = jnp.asarray(np.random.RandomState(0).randint(2, 96, (16, 6)))
    valid = jnp.ones(96, bool).at[0].set(False)

    def run(params, prompts, rows, key):
        encoded = model.encode(params, prompts)
        return sample(model, params, encoded, key, max_length=12, valid=valid, rows=rows)

    rows, key = jnp.arange(16), jax.random.PRNGKey(7)
    run_on_one = jax.jit(run)
    one = run_on_one(params, prompts, rows, key)
    assert len(set(map(tuple, np.asarray(one.tokens)))) > 12, "every row has noise of its own"

    mesh = meshes.make_mesh()
    assert mesh.shape["data"] == 8
    split, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    eight = jax.jit(run, in_shardings=(whole, split, split, whole))(params, prompts, rows, key)
    assert len(eight.tokens.sharding.device_set) == 8
    np.testing.assert_array_equal(eight.tokens, one.tokens)

    def several(params, prompts, key):
        encoded = model.encode(params, prompts)
        return sample(model, params, encoded, key, max_length=12, valid=valid, samples=2)

    two = jax.jit(several)(params, prompts[:8], key)  # share their prompts' keys and values
    repeated = run_on_one(params, jnp.repeat(prompts[:8], 2, axis=0), rows, key)
    np.testing.assert_array_equal(two.tokens, repeated.tokens)
    np.testing.assert_allclose(two.log_probs, repeated.log_probs, atol=1e-5)

    # The same rows in other places of the batch.
    moved = run_on_one(params, jnp.roll(prompts, 8, axis=0), jnp.roll(rows, 8), key)
    np.testing.assert_array_equal(moved.tokens, jnp.roll(one.tokens, 8, axis=0))

    other = run_on_one(params, prompts, rows, jax.random.PRNGKey(8))
    assert (np.asarray(other.tokens) != np.asarray(one.tokens)).any()


def test_no_gradient_flows_through_sampling():
    model, params = small_model()
    prompts = jnp.ones((2, 3), jnp.int32) * 5
    valid = jnp.ones(96, bool).at[0].set(False)

    def total(params):
        encoded = model.encode(params, prompts)
        got = sample(model, params, encoded, jax.random.PRNGKey(0), max_length=3, valid=valid)
        return jnp.sum(got.log_probs)

    gradients = jax.tree.leaves(jax.jit(jax.grad(total))(params))
    assert all(not np.asarray(g).any() for g in gradients)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_k": -2}, "top_k is -2"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw([[0.0, 1.0]] * 2, 1, 0, **options)
