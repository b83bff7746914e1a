"""Decoding token by token against the teacher-forced decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models import t5
from gkd.models.interface import project
from tests.models import golden
from tests.models.golden import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stacked", [False, True])
def test_cached_logits_equal_teacher_forced_ones(shared, family, stacked):
    config, params, want = golden.read(shared / "golden/hf" / family)
    reference = want["long_logits"]
    if stacked:
        config = dataclasses.replace(config, stacked_layers=True)
        params = t5.stack_layers(params)
    model = t5.as_seq2seq(config)
    encoded = jax.jit(model.encode)(params, jnp.asarray(want["long_input_ids"]))
    tokens = jnp.asarray(want["long_decoder_input_ids"])
    weights, cache = model.init_cache(params, encoded, tokens.shape[1])

    def step(cache, at):
        hidden, cache = model.decode_step(weights, cache, tokens[:, at], at)
        return cache, project(hidden, model.head(params))

    _, by_position = jax.lax.scan(step, cache, jnp.arange(tokens.shape[1]))
    got = np.swapaxes(by_position, 0, 1)  # [B, T, V]
    real = want["long_decoder_attention_mask"] == 1
    np.testing.assert_allclose(got[real], reference[real], atol=1e-4)
