"""Attention to several groups of keys against a float64 loop over heads, queries and keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decoders import attention
from gkd.decoders.attention import EVERYWHERE, Keys, attend, visible_keys

SCALE = 0.3


def by_hand(query, positions, groups, window, cap):
    """softmax over all seen keys of all groups, in float64."""
    query = np.asarray(query, np.float64)
    rows, length, heads, dim = query.shape
    result = np.zeros((rows, length, heads, dim))
    for n, t, h in np.ndindex(rows, length, heads):
        scores, values = [], []
        for group in groups:
            keys, kept = np.asarray(group.keys, np.float64), len(group.keys)
            r, k = n // (rows // kept), h // (heads // keys.shape[2])
            for place in range(keys.shape[1]):
                seen = bool(group.visible[r, place])
                if group.positions is not None:
                    away = int(positions[n, t]) - int(group.positions[r, place])
                    away = abs(away) if group.both_ways else away
                    seen &= 0 <= away < window
                if not seen:
                    continue
                score = SCALE * query[n, t, h] @ keys[r, place, k]
                scores.append(score if cap is None else cap * np.tanh(score / cap))
                values.append(np.asarray(group.values[r, place, k], np.float64))
        weights = np.exp(np.array(scores) - max(scores))
        result[n, t, h] = weights / weights.sum() @ np.array(values)
    return result.reshape(rows, length, heads * dim)


def case(length=5, samples=2, seed=0):
    """Two prompts of 4 and 2 tokens, `samples` continuations of each; 4 heads share 2 keys."""
    rng = np.random.default_rng(seed)
    rows, dim = 2 * samples, 3

    def normal(*shape):
        return jnp.array(rng.normal(size=shape), jnp.float32)

    visible = jnp.array([[True] * 4, [True] * 2 + [False] * 2])
    prompt = Keys(
        normal(2, 4, 2, dim), normal(2, 4, 2, dim), visible, jnp.array([[0, 1, 2, 3]] * 2)
    )
    start = jnp.repeat(jnp.array([4, 2]), samples)[:, None]
    positions = start + jnp.arange(length)
    everywhere = jnp.ones((rows, length), bool)
    own = Keys(normal(rows, length, 2, dim), normal(rows, length, 2, dim), everywhere, positions)
    return normal(rows, length, 4, dim), positions, (prompt, own)


@pytest.mark.parametrize(
    "window, cap", [(EVERYWHERE, None), (3, None), (EVERYWHERE, 0.5), (1, 0.5)]
)
def test_a_continuation_attends_to_its_prompt_and_to_itself(window, cap):
    query, positions, groups = case()
    got = attend(query, positions, groups, scale=SCALE, soft_cap=cap, window=window)
    np.testing.assert_allclose(got, by_hand(query, positions, groups, window, cap), atol=1e-5)


@pytest.mark.parametrize(("window", "before", "after"), [(1, 0, 0), (4, 1, 2), (5, 2, 2)])
def test_a_centred_window_has_its_tokens_around_the_query(window, before, after):
    """The numbers are those of transformers' T5Gemma 2, whose windows hold w tokens."""
    places = jnp.arange(9)[None]
    keys = jnp.zeros((1, 9, 1, 2))
    group = Keys(keys, keys, jnp.ones((1, 9), bool), places, both_ways=True, centred=True)
    seen = np.asarray(visible_keys(group, places, window))[0, 4]
    assert np.flatnonzero(seen).tolist() == list(range(4 - before, 5 + after))


def test_an_encoder_sees_both_ways_and_a_context_has_no_positions():
    query, positions, (prompt, own) = case()
    for groups in ((own.replace(both_ways=True),), (prompt.replace(positions=None),)):
        got = attend(query, positions, groups, scale=SCALE, window=2)
        np.testing.assert_allclose(got, by_hand(query, positions, groups, 2, None), atol=1e-5)


def test_long_rows_are_computed_in_blocks_with_the_same_gradients(monkeypatch):
    query, positions, groups = case(length=6)

    def total(query, groups):
        mixed = attend(query, positions, groups, scale=SCALE, soft_cap=2.0, window=4)
        return jnp.sum(mixed * jnp.cos(jnp.arange(mixed.size).reshape(mixed.shape)))

    def gradients():
        value, found = jax.value_and_grad(total, (0, 1), allow_int=True)(query, groups)
        (prompt, own) = found[1]
        return value, found[0], prompt.keys, prompt.values, own.keys, own.values

    whole = gradients()
    monkeypatch.setattr(attention, "query_block", lambda queries: 2)
    for block, wanted in zip(gradients(), whole, strict=True):
        np.testing.assert_allclose(block, wanted, atol=1e-5)


def test_a_long_row_never_has_its_scores_at_once():
    """600 queries to 600 keys: no array of 600 × 600 exists in the program."""
    shape = jax.ShapeDtypeStruct((1, 600, 2, 4), jnp.float32)

    def run(query, keys):
        positions = jnp.arange(600)[None]
        group = Keys(keys, keys, jnp.ones((1, 600), bool), positions)
        return attend(query, positions, (group,), scale=1.0)

    text = jax.jit(jax.grad(lambda q, k: jnp.sum(run(q, k)))).lower(shape, shape).as_text()
    assert "600x600x" not in text and "120x600x" in text
