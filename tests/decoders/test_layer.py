"""The numbering of tokens in padded rows."""

import jax.numpy as jnp

from gkd.decoders.layer import positions_of


def test_tokens_are_numbered_from_zero_wherever_the_padding_is():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    assert positions_of(mask).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
