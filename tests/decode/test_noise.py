"""The sampler's noise: its own for every token, row, sample and call, and the settings' order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gkd.decode.sampling import sample
from gkd.models.interface import Encoded
from tests.decode.table_model import draw, table_model

VOCABULARY, LENGTH, ROWS = 64, 40, 48


def uniform_tokens(key, rows=None, samples=1):
    """Tokens of a model to whom all ids but pad and EOS are equally probable: the noise itself."""
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    valid = jnp.arange(VOCABULARY) >= 2
    encoded = Encoded(jnp.ones((ROWS, 1, 1)), jnp.ones((ROWS, 1), bool))
    run = jax.jit(
        lambda key: sample(
            table_model(table, VOCABULARY), {}, encoded, key,
            max_length=LENGTH, valid=valid, rows=rows, samples=samples,
        )
    )  # fmt: skip
    return np.asarray(run(jax.random.PRNGKey(key)).tokens)


def check_independent(first, second):
    """Equal as often as chance has it (1 of 62), and without correlation (3.5 deviations)."""
    first, second = np.ravel(first).astype(float), np.ravel(second).astype(float)
    count, chance = first.size, 1 / (VOCABULARY - 2)
    equal = np.mean(first == second)
    assert abs(equal - chance) < 3.5 * np.sqrt(chance * (1 - chance) / count)
    assert abs(np.corrcoef(first, second)[0, 1]) < 3.5 / np.sqrt(count)


@pytest.fixture(scope="module")
def tokens():
    return uniform_tokens(0)


def test_every_id_comes_equally_often(tokens):
    counts = np.bincount(tokens.ravel(), minlength=VOCABULARY)
    assert counts[:2].sum() == 0
    assert stats.chisquare(counts[2:]).pvalue > 1e-3


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_neighbouring_tokens_have_noise_of_their_own(tokens, distance):
    check_independent(tokens[:, distance:], tokens[:, :-distance])


@pytest.mark.parametrize("distance", [1, 2, 8])
def test_neighbouring_rows_have_noise_of_their_own(tokens, distance):
    check_independent(tokens[distance:], tokens[:-distance])


@pytest.mark.parametrize("distance", [1, -1])
def test_a_row_does_not_repeat_its_neighbours_noise_one_token_later(tokens, distance):
    """As keys would that are the sum of row and step."""
    later, earlier = (1, 0) if distance == 1 else (0, 1)
    rows, steps = ROWS - 1, LENGTH - 1
    check_independent(tokens[later : later + rows, 1:], tokens[earlier : earlier + rows, :steps])


def test_samples_of_a_prompt_have_noise_of_their_own():
    tokens = uniform_tokens(0, samples=2).reshape(ROWS, 2, LENGTH)
    check_independent(tokens[:, 0], tokens[:, 1])


@pytest.mark.parametrize("key", [1, 2])
def test_calls_have_noise_of_their_own(tokens, key):
    check_independent(tokens, uniform_tokens(key))


def test_the_class_and_the_id_within_it_have_noise_of_their_own():
    """64 ids are 8 classes of 8: all 62 pairs of class and place come, not only a diagonal."""
    seen = np.unique(uniform_tokens(3))
    assert len(seen) == VOCABULARY - 2


def test_the_temperature_comes_before_the_truncation():
    """At ½ the shares .4, .3, .2, .1 become .533, .3, .133, .033: .8 takes two ids, not three."""
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    got = draw([logits] * 4, 20_000, 5, temperature=0.5, top_p=0.8)
    frequencies = np.bincount(np.asarray(got.tokens)[:, 0], minlength=4) / 20_000
    np.testing.assert_allclose(frequencies, [0, 0.16 / 0.25, 0, 0.09 / 0.25], atol=0.015)
    # At temperature 2 they are .325, .282, .230, .163: .7 takes three ids, before it two.
    got = draw([logits] * 4, 20_000, 5, temperature=2.0, top_p=0.7)
    assert set(np.asarray(got.tokens)[:, 0]) == {1, 3, 2}


def test_greedy_takes_the_first_of_equal_ids():
    logits = np.array([0.0, 2.0, 1.0, 2.0, 2.0, -1.0, 2.0, 0.5])
    got = draw([logits] * 8, 3, 0, temperature=0.0)
    np.testing.assert_array_equal(got.tokens[:, 0], [1, 1, 1])
    masked = jnp.ones(8, bool).at[1].set(False)
    got = draw([logits] * 8, 3, 0, temperature=0.0, valid=masked)
    np.testing.assert_array_equal(got.tokens[:, 0], [3, 3, 3])
