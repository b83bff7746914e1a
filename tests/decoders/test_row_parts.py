"""Prefills and T5Gemma's encoder in parts of their own lengths, against rows at full length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.models.row_parts import RowParts, encode_rows
from gkd.models.scoring import score_tokens
from tests.decoders.models import PATTERNED, TINY, parameters_of

# Two shards of four rows: of each the first two rows have up to 9 tokens, the others up to 4.
PARTS, LONGEST = RowParts((9, 4), shards=2), 9
LENGTHS = np.array((9, 6, 4, 1, 5, 9, 3, 4))
MODELS = {
    "plain": TINY,
    "gemma, stacked": dataclasses.replace(PATTERNED, stacked_layers=True),
    "T5Gemma": T5GemmaConfig(dataclasses.replace(PATTERNED, emb_dim=12), PATTERNED),
}


def prompts():
    tokens = np.random.default_rng(0).integers(2, 40, (8, LONGEST))
    return jnp.asarray(np.where(np.arange(LONGEST) < LENGTHS[:, None], tokens, -1))


@pytest.mark.parametrize("name", MODELS)
def test_states_and_gradients_are_those_of_rows_at_full_length(name):
    model, params = MODELS[name].build(), parameters_of(MODELS[name])
    targets = jnp.asarray(np.random.default_rng(1).integers(2, 40, (16, 3)))  # two a prompt

    def run(params, parts):
        encoded = encode_rows(model, params, prompts(), parts)
        states = score_tokens(model, params, encoded, targets).hidden
        return jnp.sum(jnp.sin(states)), (states, encoded)

    run = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)
    (_, (states, encoded)), gradient = run(params, PARTS)
    (_, (expected, whole)), full = run(params, None)
    np.testing.assert_array_equal(encoded.mask, whole.mask)
    np.testing.assert_allclose(states, expected, atol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), gradient, full
    )
    leaf = jax.tree.leaves(encoded.hidden)[0]  # keys of the first layer, or of all, stacked
    leaf = leaf[0] if name == "gemma, stacked" else leaf
    assert not leaf[2, 4:].any() and leaf[2, 3].any() and leaf[5, 8].any()
