"""Teacher-forced scores: Hugging Face's golden logits, and models with other special ids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.beam import beam_search
from gkd.decode.sampling import sample
from gkd.distill.rollouts import rollout_from_targets, rollout_metrics
from gkd.distill.types import Batch
from gkd.models import t5
from gkd.models.interface import Encoded, Head, Hidden, Seq2SeqModel, SpecialIds, project
from gkd.models.scoring import score_tokens
from tests.models import golden

IDS = SpecialIds(start=2, end=4, padding=3)


def chain(next_of, ids=IDS, start_tokens=None):
    """A model that is certain: after token i comes next_of[i]."""
    rows = 50.0 * jnp.eye(len(next_of))[jnp.array(next_of)]

    def encode(params, tokens, dropout_rng=None):
        return Encoded(jnp.zeros((*tokens.shape, 1)), tokens != ids.padding, start_tokens)

    return Seq2SeqModel(
        init=lambda rng: {},
        encode=encode,
        decode_hidden=lambda params, encoded, tokens, dropout_rng=None: Hidden(rows[tokens]),
        init_cache=lambda params, encoded, length, samples: ((), jnp.int32(0)),
        decode_step=lambda weights, cache, tokens, position: (rows[tokens], cache),
        head=lambda params: Head(jnp.eye(len(next_of))),
        vocab_size=len(next_of),
        special_ids=ids,
    )


def test_scores_equal_hugging_face(shared):
    config, params, want = golden.read(shared / "golden/hf/t5v11_tiny")
    model = t5.as_seq2seq(config)
    inputs, start = jnp.asarray(want["input_ids"]), np.asarray(want["decoder_input_ids"])
    assert (start[:, 0] == 0).all(), "T5 starts with 0"
    # The inputs are the targets shifted right, so the last target is free: nothing sees it.
    tokens = np.concatenate([start[:, 1:], np.full_like(start[:, :1], 7)], axis=1)

    @jax.jit
    def logits_of(params, inputs, tokens):
        scored = score_tokens(model, params, model.encode(params, inputs), tokens)
        return project(scored.hidden, scored.head)

    logits = logits_of(params, inputs, jnp.asarray(tokens))
    # Hugging Face masks padding inputs, which T5X does not: compare up to the first of them.
    before = np.cumprod(np.pad(start[:, 1:] != 0, ((0, 0), (1, 0)), constant_values=True), axis=1)
    assert before.sum() > before.size / 2
    shown = before[..., None].astype(bool)
    np.testing.assert_allclose(logits * shown, want["logits"] * shown, atol=2e-4)


@pytest.mark.parametrize("starts", [None, [0, 5]])
def test_the_first_input_is_the_models_or_each_prompts(starts):
    """Two rows per prompt: the first logits are those after the start, then after each token."""
    next_of = [1, 4, 5, 3, 4, 6, 0]
    model = chain(next_of, start_tokens=None if starts is None else jnp.array(starts))
    encoded = model.encode({}, jnp.array([[0, 1], [1, 0]]))
    scored = score_tokens(model, {}, encoded, jnp.array([[6, 1], [1, 1], [5, 0], [0, 0]]))
    best = np.argmax(project(scored.hidden, scored.head), axis=-1)
    first = [5, 5, 5, 5] if starts is None else [1, 1, 6, 6]
    np.testing.assert_array_equal(best, np.stack([first, [0, 4, 6, 1]], axis=1))


def test_samplers_start_end_and_pad_with_the_models_ids():
    """2 → 5 → 6 → 4, which ends the row; the rest is 3."""
    model, valid = chain([1, 1, 5, 3, 4, 6, 4]), jnp.ones(7, bool).at[3].set(False)
    encoded = model.encode({}, jnp.array([[0, 1]]))
    options = {"max_length": 5, "valid": valid}
    written = sample(model, {}, encoded, jax.random.PRNGKey(0), samples=2, **options)
    assert written.tokens.tolist() == [[5, 6, 4, 3, 3]] * 2
    assert written.lengths.tolist() == [3, 3]
    found = beam_search(model, {}, encoded, beams=1, **options)
    assert found.tokens.tolist() == [[[5, 6, 4, 3, 3]]]
    # An id given by the caller wins.
    early = sample(model, {}, encoded, jax.random.PRNGKey(0), eos_id=5, **options)
    assert early.tokens.tolist() == [[5, 3, 3, 3, 3]]


def test_samplers_start_where_each_prompt_ends():
    """A decoder-only model continues its prompt's last token."""
    model = chain([1, 4, 5, 3, 4, 6, 4], start_tokens=jnp.array([5, 0]))
    encoded = model.encode({}, jnp.array([[0, 1], [1, 0]]))
    options = {"max_length": 3, "valid": jnp.ones(7, bool).at[3].set(False)}
    written = sample(model, {}, encoded, jax.random.PRNGKey(0), **options)
    assert written.tokens.tolist() == [[6, 4, 3], [1, 4, 3]]
    found = beam_search(model, {}, encoded, beams=1, **options)
    assert found.tokens[:, 0].tolist() == [[6, 4, 3], [1, 4, 3]]


def test_rollouts_end_at_the_padding_id():
    """Id 0 is a token like any other where padding is 3."""
    tokens = jnp.array([[0, 0, 4, 3], [0, 5, 0, 0]])
    batch = Batch(tokens, tokens, jnp.ones(2))
    rollout = rollout_from_targets(batch, padding_id=3)
    assert rollout.weights.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    metrics = rollout_metrics(rollout, 4, 3)
    assert [float(x) for x in metrics["target_length"]] == [7.0, 2.0]
    assert [float(x) for x in metrics["cut_off"]] == [1.0, 2.0]


def test_padding_differs_from_the_end():
    with pytest.raises(ValueError, match="end and padding are both 1"):
        dataclasses.replace(IDS, end=1, padding=1)
