"""Beam search against every possible output, T5X's recorded outputs, greedy and forced decoding."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.beam import _top_of_many, beam_search
from gkd.decode.sampling import sample
from gkd.models import t5
from gkd.models.interface import Encoded, Head, Seq2SeqModel
from gkd.parallel import mesh as meshes

PAD, EOS = 0, 1


def prefix_model(table):
    """A model whose logits are table[prompt, prefix], the prefix read as a number in base V.

    The prompt is in the weights and the prefix in the cache: both are lost if rows are mixed up.
    """
    table = jnp.asarray(table, jnp.float32)
    vocab = table.shape[-1]

    def decode_step(prompts, cache, tokens, position):
        prefix = cache["prefix"] * vocab + tokens[:, None]
        return table[prompts, prefix[:, 0]], {"prefix": prefix, "steps": cache["steps"] + 1}

    return Seq2SeqModel(
        init=lambda rng: {},
        encode=lambda params, tokens: None,
        decode_hidden=lambda params, encoded, tokens: None,
        init_cache=lambda params, encoded, length, samples: (
            jnp.repeat(encoded.hidden[:, 0, 0].astype(int), samples),
            {"prefix": jnp.zeros((len(encoded.mask) * samples, 1), int), "steps": jnp.int32(0)},
        ),
        decode_step=decode_step,
        head=lambda params: Head(jnp.eye(vocab)),
        vocab_size=vocab,
    )


def search(table, valid, **options):
    prompts = len(table)
    numbers = jnp.arange(prompts, dtype=jnp.float32)[:, None, None]
    encoded = Encoded(numbers, jnp.ones((prompts, 1), bool))
    options = {"valid": jnp.asarray(valid), **options}
    run = jax.jit(lambda: beam_search(prefix_model(table), {}, encoded, **options))
    return jax.tree.map(np.asarray, run())


def log_softmax(logits, valid):
    logits = np.where(valid, np.asarray(logits, np.float64), -np.inf)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def every_output(table, valid, length, alpha):
    """All outputs of one prompt as (tokens, log-probability, score), ended ones first, best first.

    table: [prefixes, V] next-token logits, prefixes numbered as in `prefix_model`.
    """
    found = []
    vocab = len(valid)
    log_probs = log_softmax(table, valid)
    usable = [token for token in range(vocab) if valid[token]]
    for size in range(1, length + 1):
        for tokens in itertools.product(usable, repeat=size):
            if EOS in tokens[:-1] or (tokens[-1] != EOS and size < length):
                continue
            total, prefix = 0.0, 0
            for token in tokens:
                total += log_probs[prefix, token]
                prefix = prefix * vocab + token
            score = total / ((5 + size) / 6) ** alpha
            found.append((tokens[-1] != EOS, -score, tokens, total))
    return [(tokens, total, -negative) for _, negative, tokens, total in sorted(found)]


def random_table(seed, prompts, length, vocab, scale=1.5):
    table = np.random.RandomState(seed).normal(0, scale, (prompts, vocab ** (length - 1), vocab))
    return table.astype(np.float32)


@pytest.mark.parametrize(
    "beams, alpha",
    [
        (12, 3.0), (32, 1.0),
        *(pytest.param(12, alpha, marks=pytest.mark.slow) for alpha in (0.0, 0.6)),
    ],
)  # fmt: skip
def test_enough_beams_find_the_best_of_all_outputs(beams, alpha):
    # Two ids to write besides EOS: 8 live beams and 24 candidates are all there are, 15 outputs end
    # and 16 are cut off. 12 beams keep the best of those that end; 32 keep all, one place is empty.
    valid = np.array([False, True, True, True, False])
    table = random_table(0, 3, 4, 5)
    table[..., 4] += 9  # unusable, yet the most probable
    table[0, 0, EOS] += 4  # the best output of this prompt is empty
    table[1, :, EOS] -= 4  # this one would rather not end
    got = search(table, valid, max_length=4, beams=beams, length_penalty=alpha)
    for row in range(3):
        want = every_output(table[row], valid, 4, alpha)
        assert len(want) == 31
        for beam, (tokens, log_prob, score) in enumerate(want[:beams]):
            padded = tokens + (PAD,) * (4 - len(tokens))
            np.testing.assert_array_equal(got.tokens[row, beam], padded)
            np.testing.assert_allclose(got.log_probs[row, beam], log_prob, rtol=1e-5)
            np.testing.assert_allclose(got.scores[row, beam], score, rtol=1e-5)
            assert got.lengths[row, beam] == len(tokens)
    assert tuple(got.tokens[0, 0]) == (EOS, 0, 0, 0) or alpha == 3.0
    if beams == 32:
        assert not got.tokens[:, 31].any() and not got.lengths[:, 31].any()
        assert np.isneginf(got.log_probs[:, 31]).all() and np.isneginf(got.scores[:, 31]).all()


# t5x.decoding.beam_search (google-research/t5x) on random_table(5, 3, 4, 9, 2.0) as changed below,
# with the first and last id at -1e9: tokens and scores, best first. Nothing finished of the first
# prompt (there its scores are log-probabilities), less than K of the third.
FIRST = [[2, 6, 7, 5], [2, 7, 3, 5], [2, 6, 7, 4]]
FIRST_LOG_PROBS = [-1.1936209, -2.1633797, -2.7995441]
RECORDED = [
    (2, 0.6, [[5, 1, 0, 0], [5, 6, 1, 0]], [-1.6739250, -2.2084618], [1, 0, 0, 0], -2.5780668),
    (
        3,
        1.0,
        [[5, 1, 0, 0], [5, 6, 1, 0], [7, 5, 1, 0]],
        [-1.5738280, -1.9684048, -2.8511446],
        [1, 0, 0, 0],
        -2.5780668,
    ),
]


@pytest.mark.parametrize("beams, alpha, second, scores, third, third_score", RECORDED)
def test_few_beams_find_what_t5x_finds(beams, alpha, second, scores, third, third_score):
    table = random_table(5, 3, 4, 9, scale=2.0)
    for row, change in enumerate([-12, 1, -3]):
        table[row, :, EOS] += change
    valid = np.array([False] + [True] * 7 + [False])
    got = search(table, valid, max_length=4, beams=beams, length_penalty=alpha)
    np.testing.assert_array_equal(got.tokens[0], FIRST[:beams])
    np.testing.assert_allclose(got.log_probs[0], FIRST_LOG_PROBS[:beams], rtol=1e-5)
    np.testing.assert_allclose(got.scores[0], got.log_probs[0] / 1.5**alpha, rtol=1e-5)
    np.testing.assert_array_equal(got.tokens[1], second)
    np.testing.assert_allclose(got.scores[1], scores, rtol=1e-5)
    np.testing.assert_array_equal(got.tokens[2, 0], third)
    np.testing.assert_allclose(got.scores[2, 0], third_score, rtol=1e-5)
    np.testing.assert_array_equal(got.lengths[2], [1] + [4] * (beams - 1))  # then: what was cut off


@pytest.mark.parametrize("alpha, expected", [(0.0, 2), (1.0, 13)])
def test_the_loop_ends_when_no_live_beam_can_beat_the_worst_kept_output(alpha, expected):
    # After n steps (n-1 times .4, then EOS) has finished and n times .4 lives. Unpenalised, .16 no
    # longer beats .6 and .24. With α=1 the second best score is log(.24)·6/7, and n·log(.4)·6/55,
    # the live beam's best, falls below it at n=13.
    logits = jnp.log(jnp.array([1.0, 0.6, 0.4]))  # pad is not valid
    steps = []

    def decode_step(weights, cache, tokens, position):
        jax.debug.callback(steps.append, position)
        return jnp.broadcast_to(logits, (len(tokens), 3)), cache

    model = prefix_model(np.zeros((2, 1, 3)))
    counted = dataclasses.replace(model, decode_step=decode_step)
    encoded = Encoded(jnp.ones((2, 1, 1)), jnp.ones((2, 1), bool))
    options = {"valid": jnp.array([False, True, True]), "beams": 2, "length_penalty": alpha}
    run = jax.jit(lambda: beam_search(counted, {}, encoded, max_length=50, **options))
    got = jax.block_until_ready(run())
    jax.effects_barrier()
    assert len(steps) == expected
    np.testing.assert_array_equal(got.lengths, [[1, 2]] * 2)
    want = [np.log(0.6), np.log(0.24) / (7 / 6) ** alpha]
    np.testing.assert_allclose(got.scores, [want] * 2, rtol=1e-5)


@pytest.mark.parametrize("size", [16, 5000])
def test_the_best_candidates_are_those_of_a_stable_sort(size):
    random = np.random.RandomState(0)
    x = random.randint(0, 12, (3, size)).astype(np.float32)  # most are tied
    x[1, -1] = 20  # the last block has the greatest, yet of its ties the first blocks come first
    x[2, 7:] = -np.inf  # fewer candidates than are asked for
    values, index = jax.jit(_top_of_many, static_argnums=1)(x, 8)
    want = np.argsort(-x, axis=-1, kind="stable")[:, :8]
    np.testing.assert_array_equal(index, want)
    np.testing.assert_array_equal(values, np.take_along_axis(x, want, axis=-1))


END = 44  # the id that ends outputs of the random model: it writes it now and then
OPTIONS = {"max_length": 12, "eos_id": END}


@functools.cache
def random_model():
    """(model, params, 16 prompts of two lengths, usable ids)."""
    config = t5.T5Config(
        vocab_size=96, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
        num_decoder_layers=2,
    )  # fmt: skip
    model = t5.as_seq2seq(config)
    prompts = np.random.RandomState(0).randint(2, 96, (16, 6))
    prompts[::3, 4:] = PAD
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1)))
    return model, params, jnp.asarray(prompts), jnp.ones(96, bool).at[0].set(False)


@functools.cache
def run_random(beams=4):
    model = random_model()[0]

    def run(params, prompts, valid):
        encoded = model.encode(params, prompts)
        options = {"beams": beams, "length_penalty": 0.0 if beams == 1 else 0.6, **OPTIONS}
        return beam_search(model, params, encoded, valid=valid, **options)

    return jax.jit(run)


def test_one_beam_is_greedy():
    model, params, prompts, valid = random_model()
    got = run_random(beams=1)(params, prompts, valid)

    def greedy(params, prompts):
        encoded, key = model.encode(params, prompts), jax.random.PRNGKey(0)
        return sample(model, params, encoded, key, valid=valid, temperature=0.0, **OPTIONS)

    want = jax.jit(greedy)(params, prompts)
    assert sorted(np.asarray(want.lengths))[:6] == [2, 5, 5, 6, 7, 12]
    np.testing.assert_array_equal(got.tokens[:, 0], want.tokens)
    np.testing.assert_array_equal(got.lengths[:, 0], want.lengths)
    np.testing.assert_allclose(got.log_probs[:, 0], np.sum(want.log_probs, axis=1), rtol=1e-4)


def test_one_beam_keeps_an_eos_that_greedy_passes_by():
    # Greedy: .5 · .5 · .5 cut off; EOS at once has .4.
    logits = np.log(np.array([1e-9, 0.4, 0.5, 0.1]))
    table = np.broadcast_to(logits, (1, 16, 4))
    got = search(table, [False, True, True, True], max_length=3, beams=1, length_penalty=0.0)
    np.testing.assert_array_equal(got.tokens[0], [[EOS, 0, 0]])
    np.testing.assert_allclose(got.log_probs, [[np.log(0.4)]], rtol=1e-5)


def test_log_probs_equal_teacher_forced_ones():
    model, params, prompts, valid = random_model()
    valid = valid.at[60:].set(False)
    got = jax.tree.map(np.asarray, run_random()(params, prompts, valid))
    tokens = got.tokens.reshape(64, 12)
    shifted = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]

    def force(params, prompts):
        return model.decode_hidden(params, model.encode(params, prompts), shifted)

    hidden = jax.jit(force)(params, jnp.repeat(prompts, 4, axis=0))
    kernel = np.asarray(params["decoder"]["logits_dense"]["kernel"], np.float64)
    forced = log_softmax(np.asarray(hidden.last, np.float64) @ kernel, np.asarray(valid))
    forced = np.take_along_axis(forced, tokens[..., None], axis=-1)[..., 0]
    written = np.arange(12) < got.lengths.reshape(64, 1)
    forced = np.where(written, forced, 0.0).sum(axis=1).reshape(16, 4)
    np.testing.assert_allclose(got.log_probs, forced, atol=1e-4)
    np.testing.assert_allclose(got.scores, forced / ((5 + got.lengths) / 6) ** 0.6, atol=1e-4)
    assert not tokens[~written].any() and (tokens[written] > 0).all()
    assert tokens.max() < 60, "an unusable id was written"
    ended = (got.tokens == END).any(axis=-1)
    assert 10 < ended.sum() < 64, "some end and some are cut off"
    assert (np.diff(ended.astype(int), axis=1) <= 0).all(), "those that end come first"
    assert all(len(set(map(tuple, row))) == 4 for row in got.tokens), "four different outputs"
    assert (got.lengths[~ended] == 12).all()
    assert (got.tokens[got.lengths < 12].reshape(-1, 12) == END).sum(axis=1).all()


def test_one_program_serves_every_batch_on_one_device_and_on_eight():
    model, params, prompts, valid = random_model()
    run = run_random()
    one = run(params, prompts, valid)
    again = run(params, prompts[::-1], valid)
    assert run._cache_size() == 1, "compiled once"
    np.testing.assert_array_equal(again.tokens[::-1], one.tokens)

    mesh = meshes.make_mesh()
    assert mesh.shape["data"] == 8
    split, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    sharded = jax.jit(run_random(), in_shardings=(whole, split, whole))
    compiled = sharded.lower(params, prompts, valid).compile()
    assert "all-gather" not in compiled.as_text(), "a prompt's beams stay on its device"
    eight = compiled(*jax.device_put((params, prompts, valid), (whole, split, whole)))
    assert len(eight.tokens.sharding.device_set) == 8
    np.testing.assert_array_equal(eight.tokens, one.tokens)
    np.testing.assert_array_equal(eight.lengths, one.lengths)
    np.testing.assert_allclose(eight.scores, one.scores, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"beams": 0}, "beams is 0"),
        ({"length_penalty": -0.1}, "length_penalty is -0.1"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"eos_id": 3}, "eos_id is 3"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        search(np.zeros((1, 1, 3)), [False, True, True], **{"max_length": 1, **options})
    assert "\n" not in str(error.value)
