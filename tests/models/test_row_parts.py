"""Encoding rows in parts of their own lengths, against encoding each row alone at full length."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models import t5
from gkd.models.row_parts import RowParts, encode_rows
from gkd.models.scoring import score_tokens

ROWS, LONGEST = 8, 12
# Two shards of four rows: of each the first two rows have up to 12 tokens, the others up to 5.
PARTS = RowParts((12, 5), shards=2)
LENGTHS = (12, 9, 5, 1, 7, 11, 4, 5)
SMALL = {
    "vocab_size": 16, "emb_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 24,
    "num_encoder_layers": 2, "num_decoder_layers": 1,
}  # fmt: skip
FORMS = {
    "one bias": {},
    "stacked": {"stacked_layers": True},
    "a bias per layer": {"relative_bias_per_layer": True},
}


def prompts():
    tokens = np.random.RandomState(0).randint(2, 16, (ROWS, LONGEST))
    return jnp.asarray(np.where(np.arange(LONGEST) < np.array(LENGTHS)[:, None], tokens, 0))


@functools.cache
def model_of(form):
    model = t5.as_seq2seq(t5.T5Config(**SMALL, **FORMS[form], dropout_rate=0.5))
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    random = np.random.RandomState(1)
    params = jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape) / 4, jnp.float32), shapes
    )
    return model, params


@pytest.mark.parametrize(
    "form", [pytest.param("one bias", marks=pytest.mark.slow), "stacked", "a bias per layer"]
)
def test_states_and_gradients_are_those_of_rows_at_full_length(form):
    model, params = model_of(form)
    targets = jnp.asarray(np.random.RandomState(2).randint(2, 16, (ROWS, 3)))

    def run(params, parts):
        encoded = encode_rows(model, params, prompts(), parts)
        logits = score_tokens(model, params, encoded, targets)
        return jnp.sum(jnp.sin(logits.hidden)), encoded

    run = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    (got, encoded), gradient = run(params, PARTS)
    (want, whole), expected = run(params, None)
    assert got == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_array_equal(encoded.mask, prompts() > 0)
    states = np.where(whole.mask[..., None], whole.hidden, 0)
    np.testing.assert_allclose(
        np.where(whole.mask[..., None], encoded.hidden, 0), states, atol=2e-5
    )
    assert not encoded.hidden[2, 5:].any() and encoded.hidden[2, 4].any()
    assert encoded.hidden[5, 10].any()  # of the longer part of the second shard
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5, rtol=3e-4), gradient, expected
    )


def test_long_rows_attend_in_blocks_beside_short_ones(monkeypatch):
    """As of 512 tokens and more: here of 12, two queries at a time."""
    from gkd.models import layers

    monkeypatch.setattr(layers, "BLOCKED_FROM", 12)
    monkeypatch.setattr(layers, "LARGEST_BLOCK", 4)
    monkeypatch.setattr(layers, "SMALLEST_BLOCK", 2)
    model, params = model_of("one bias")
    blocked = jax.jit(lambda params: encode_rows(model, params, prompts(), PARTS).hidden)(params)
    monkeypatch.undo()
    whole = jax.jit(model.encode)(params, prompts())
    seen = np.asarray(whole.mask)
    np.testing.assert_allclose(np.asarray(blocked)[seen], whole.hidden[seen], atol=2e-5)


def test_a_model_that_encodes_no_parts_encodes_the_padding():
    model, params = model_of("one bias")
    plain = dataclasses.replace(model, encode_parts=None)
    got = jax.jit(lambda params: encode_rows(plain, params, prompts(), PARTS))(params)
    assert got.hidden[2, 5:].all()


def test_rows_side_by_side_have_dropout_masks_of_their_own():
    """Half of the states are dropped, and not the same half of the two rows of a shard's place."""
    model, params = model_of("one bias")
    tokens = jnp.tile(jnp.arange(2, 7), (ROWS, 1))  # all rows are alike
    tokens = jnp.pad(tokens, ((0, 0), (0, 7)))
    encode = jax.jit(lambda params, key: encode_rows(model, params, tokens, PARTS, key).hidden)
    encoded = encode(params, jax.random.key(3))
    dropped = np.asarray(encoded[:, :5] == 0)
    assert (dropped == dropped[:, :1]).all()  # one mask for all positions of a row
    masks = {tuple(row) for row in dropped[:, 0]}
    assert len(masks) == ROWS
    assert 0.3 < dropped.mean() < 0.7
