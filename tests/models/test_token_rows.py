"""Rows of token ids joined with static shapes, beside lists joined by plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models.interface import SpecialIds
from gkd.models.token_rows import fixed_piece, joined_row, text_length

IDS = SpecialIds(end=3, padding=9)


@pytest.mark.parametrize(
    ("row", "length"), [([5, 6, 3, 9], 2), ([5, 6, 7, 8], 4), ([9, 5, 3], 0), ([5, 9, 6, 3], 1)]
)
def test_a_text_ends_before_the_first_end_or_padding(row, length):
    assert int(text_length(jnp.array(row), IDS)) == length


def test_rows_are_the_lists_joined():
    generator = np.random.default_rng(0)
    first, second = generator.integers(10, 50, (2, 20, 5))
    starts, counts = generator.integers(0, 3, (20, 1)), generator.integers(0, 4, (20, 2))
    counts[:, :1] = np.minimum(counts[:, :1], 5 - starts)

    def one(a, b, start, count):
        pieces = [fixed_piece([]), (a, start[0], count[0]), fixed_piece([7, 8]), (b, 0, count[1])]
        return joined_row(pieces, 11, IDS)

    rows = jax.jit(jax.vmap(one))(first, second, starts, counts)
    for row, a, b, (start,), (some, others) in zip(
        rows, first, second, starts, counts, strict=True
    ):
        want = [*a[start : start + some], 7, 8, *b[:others], 3]
        assert row.tolist() == want + [9] * (11 - len(want))
