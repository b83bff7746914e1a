"""The sampler's log-probabilities are those of a teacher-forced pass, for every kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.beam import beam_search
from gkd.decode.sampling import sample
from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.distill.logits import dense
from gkd.models.scoring import score_tokens
from gkd.models.t5 import stack_layers
from tests.decoders.models import PATTERNED, TINY, parameters_of

PROMPTS = jnp.array([[3, 4, 7, 8, 2, 6], [-1, -1, 9, 0, 2, 5], [11, -1, -1, -1, -1, -1]])
MERGED = T5GemmaConfig(PATTERNED, PATTERNED, version=2)
MODELS = [TINY, PATTERNED, T5GemmaConfig(PATTERNED, TINY), MERGED]


def log_probs_of(model, params, tokens, prompts=PROMPTS):
    encoded = model.encode(params, prompts)
    logits = jax.nn.log_softmax(dense(score_tokens(model, params, encoded, tokens)))
    chosen = jnp.take_along_axis(logits, jnp.maximum(tokens, 0)[..., None], axis=2)[..., 0]
    return jnp.where(tokens >= 0, chosen, 0.0)


def sampled(model, params, length, count):
    """`count` samples of each prompt."""
    run = jax.jit(
        lambda params: sample(
            model, params, model.encode(params, PROMPTS), jax.random.PRNGKey(1),
            max_length=length, valid=jnp.ones(40, bool), samples=count,
        )
    )  # fmt: skip
    return run(params)


@pytest.mark.parametrize("config", MODELS, ids=["plain", "gemma", "t5gemma", "t5gemma2"])
@pytest.mark.parametrize("stacked", [False, True])
def test_sampled_log_probabilities_are_teacher_forced_ones(config, stacked):
    config, params = config.with_execution(stacked_layers=stacked), parameters_of(config)
    params = stack_layers(params) if stacked else params
    model = config.build()
    samples = sampled(model, params, 9, 4)
    wanted = jax.jit(lambda tokens: log_probs_of(model, params, tokens))(samples.tokens)
    np.testing.assert_allclose(samples.log_probs, wanted, atol=2e-5)
    assert len(set(map(tuple, np.asarray(samples.tokens).tolist()))) > 6


def test_bfloat16_log_probabilities_agree_within_its_rounding():
    config, params = TINY.with_execution(dtype="bfloat16"), parameters_of(TINY)
    model = config.build()
    samples = sampled(model, params, 9, 4)
    wanted = jax.jit(lambda tokens: log_probs_of(model, params, tokens))(samples.tokens)
    assert np.abs(samples.log_probs - wanted).max() < 0.1


def test_every_end_ends_a_row_and_is_kept():
    model, params = TINY.build(), parameters_of(TINY)
    samples = sampled(model, params, 40, 40)
    tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
    last = tokens[np.arange(len(tokens)), lengths - 1]
    assert {1, 5} == set(last[lengths < 40])
    inside = np.arange(40) < lengths[:, None] - 1
    assert (
        not np.isin(tokens[inside], [1, 5]).any() and (tokens[~inside & (tokens >= 0)] >= 0).all()
    )
    assert (tokens[np.arange(40) >= lengths[:, None]] == -1).all() and (tokens[inside] == 0).any()


def test_beams_with_two_ends_are_those_of_all_outputs():
    """Exhaustive: every output of at most three tokens of four ids, of which two end it."""
    model, params = TINY.build(), parameters_of(TINY)
    valid = jnp.isin(jnp.arange(40), jnp.array([1, 5, 7, 8]))
    search = jax.jit(
        lambda params, prompts: beam_search(
            model, params, model.encode(params, prompts), max_length=3, valid=valid, beams=16,
            length_penalty=0.0,
        )
    )  # fmt: skip
    found = search(params, PROMPTS[:1])
    starts = [(), (7,), (8,), (7, 7), (7, 8), (8, 7), (8, 8)]
    outputs = [(*start, end) for start in starts for end in (1, 5)]
    rows = jnp.array([[*row, *[-1] * (3 - len(row))] for row in outputs])

    @jax.jit
    def scores_of(rows):
        encoded = model.encode(params, PROMPTS[:1])
        logits = jnp.where(valid, dense(score_tokens(model, params, encoded, rows)), -jnp.inf)
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.maximum(rows, 0)[..., None], axis=2
        )
        return jnp.sum(jnp.where(rows >= 0, chosen[..., 0], 0.0), axis=1)

    scores = np.asarray(scores_of(rows))
    order = np.argsort(-scores)
    np.testing.assert_allclose(found.log_probs[0, :14], scores[order], atol=1e-5)
    np.testing.assert_array_equal(found.tokens[0, :14], np.asarray(rows)[order])
