"""A model of `encode` and `decode` alone samples and scores as its causal decoder says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.sampling import sample
from gkd.distill.logits import dense, token_log_prob
from gkd.errors import InvalidValue
from gkd.models import t5, uncached
from gkd.models.interface import Encoded, Head
from gkd.models.scoring import score_tokens
from tests.models import golden

VOCABULARY, PADDING = 6, 0
TABLE = np.random.default_rng(0).standard_normal((2, VOCABULARY, VOCABULARY)).astype(np.float32)


def counting_model(head=None):
    """Logits add up rows of two tables, of the prompt's tokens and of the earlier ones."""

    def encode(params, tokens):
        return {"counts": jnp.sum(jax.nn.one_hot(tokens, VOCABULARY), axis=1)}  # [B, V]

    def decode(params, states, mask, tokens):
        by_prompt = (states["counts"] - (~mask).sum(1)[:, None] * (jnp.arange(6) == 0)) @ params[0]
        return by_prompt[:, None] + jnp.cumsum(params[1][tokens], axis=1)

    return uncached.encoder_decoder(
        init=lambda rng: jnp.asarray(TABLE), encode=encode, decode=decode, head=head,
        vocab_size=VOCABULARY,
    )  # fmt: skip


def logits_by_hand(prompt, tokens):
    """[T, V]: of each token of one row, the start id (0) first."""
    earlier = [0, *tokens[:-1]]
    rows = [TABLE[1, earlier[: t + 1]].sum(0) for t in range(len(tokens))]
    return TABLE[0, prompt].sum(0) + np.stack(rows)


def test_samples_and_scores_are_those_of_the_decoder_by_hand():
    model, prompts = counting_model(), np.array([[2, 3, 1], [5, 1, 0]])
    params = model.init(None)
    encoded = model.encode(params, jnp.asarray(prompts))
    valid = jnp.arange(VOCABULARY) > 0
    found = sample(
        model, params, encoded, jax.random.key(3), max_length=5, valid=valid, samples=3
    )  # fmt: skip
    scores = dense(score_tokens(model, params, encoded, found.tokens))
    forced = token_log_prob(scores, found.tokens, valid)
    seen = set()
    for row, (tokens, length) in enumerate(zip(found.tokens, found.lengths, strict=True)):
        tokens = np.asarray(tokens)[:length].tolist()
        prompt = [token for token in prompts[row // 3].tolist() if token]
        want = logits_by_hand(prompt, tokens)
        np.testing.assert_allclose(scores[row, :length], want, atol=1e-5)
        possible = want[:, 1:]
        log_probs = possible - np.log(np.exp(possible).sum(1, keepdims=True))
        chosen = log_probs[np.arange(length), np.array(tokens) - 1]
        np.testing.assert_allclose(found.log_probs[row, :length], chosen, atol=1e-5)
        np.testing.assert_allclose(forced[row, :length], chosen, atol=1e-5)
        seen.add(tuple(tokens))
    assert len(seen) > 3 and max(map(len, seen)) > 2


def test_a_head_of_its_own_multiplies_what_decode_returns():
    kernel = 2 * np.eye(VOCABULARY, dtype=np.float32)
    for head in (lambda params: jnp.asarray(kernel), lambda params: Head(jnp.asarray(kernel))):
        plain, doubled = counting_model(), counting_model(head)
        params, tokens = plain.init(None), jnp.array([[4, 1]])
        encoded = plain.encode(params, jnp.array([[2, 1]]))
        logits = [dense(score_tokens(model, params, encoded, tokens)) for model in (plain, doubled)]
        np.testing.assert_allclose(logits[1], 2 * logits[0], rtol=1e-6)


def test_greedy_outputs_of_t5_without_its_cache_equal_hugging_face(shared):
    config, params, want = golden.read(shared / "golden/hf/t5v11_tiny")
    whole = t5.as_seq2seq(config)
    model = uncached.encoder_decoder(
        init=whole.init,
        encode=lambda params, tokens: whole.encode(params, tokens).hidden,
        decode=lambda params, states, mask, tokens: (
            whole.decode_hidden(params, Encoded(states, mask), tokens).last
        ),
        head=whole.head,
        vocab_size=whole.vocab_size,
    )
    length = want["greedy_sequences"].shape[1] - 1

    @jax.jit
    def generate(params, inputs):
        encoded = model.encode(params, inputs)
        valid = jnp.ones(model.vocab_size, bool)  # as Hugging Face, which may generate any id
        return sample(
            model, params, encoded, jax.random.key(0), max_length=length, valid=valid,
            temperature=0.0,
        )  # fmt: skip

    tokens = generate(params, jnp.asarray(want["input_ids"])).tokens
    np.testing.assert_array_equal(tokens, want["greedy_sequences"][:, 1:])


def test_dropout_reaches_both_functions_only_where_a_run_trains_with_it():
    given = []

    def encode(params, tokens, **more):
        given.append(("encode", *more))
        return tokens

    def decode(params, states, mask, tokens, **more):
        given.append(("decode", *more))
        return jax.nn.one_hot(tokens, VOCABULARY)

    model = uncached.encoder_decoder(
        init=dict, encode=encode, decode=decode, vocab_size=VOCABULARY
    )  # fmt: skip
    tokens = jnp.array([[3, 1]])
    for key in ({}, {"dropout_rng": jax.random.key(0)}):
        model.decode_hidden(None, model.encode(None, tokens, **key), tokens, **key)
    assert given == [("encode",), ("decode",), ("encode", "dropout_rng"), ("decode", "dropout_rng")]


def test_a_large_vocabulary_needs_a_head():
    with pytest.raises(InvalidValue, match="32128 ids needs its head"):
        uncached.encoder_decoder(init=dict, encode=dict, decode=dict, vocab_size=32128)
