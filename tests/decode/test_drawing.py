"""Drawing one id from logits: by inverse, for vocabularies of any width, over the unit interval."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.sampling import _draw, _invert, _mass, truncate_logits

TOP = 2**24  # uniform numbers of float32 lie on multiples of 2⁻²³; 2⁻²⁴ covers both roundings


def ids_over(uniforms_class, uniforms_member, logits):
    """Draws one id from the same logits [V] for each pair of uniform numbers."""
    pairs = jnp.stack([uniforms_class, uniforms_member], axis=1)
    return np.asarray(_ids_over(pairs, logits))


@jax.jit
def _ids_over(pairs, logits):
    return jax.lax.map(lambda pair: _draw(*_mass(logits[None]), pair[None])[0], pairs)


def with_impossible_ends(vocabulary, seed):
    """Logits whose first two ids and last hundredth have probability 0, as pad and sentinels."""
    logits = np.random.default_rng(seed).normal(scale=2.0, size=vocabulary).astype(np.float32)
    logits[:2] = -np.inf
    logits[vocabulary - max(3, vocabulary // 100) :] = -np.inf
    return logits


@pytest.mark.parametrize(
    "vocabulary",
    [
        250112, 250111, 2056, 257, 97,
        *(pytest.param(ids, marks=pytest.mark.slow) for ids in (250100, 256384, 32100, 2040)),
    ],
)  # fmt: skip
def test_no_id_of_probability_0_is_drawn_at_the_top_of_the_unit_interval(vocabulary):
    """mT5's, umT5's and odd tables; classes on both sides of 256 ids (2056 = 8 · 257)."""
    logits = with_impossible_ends(vocabulary, vocabulary)
    top = (TOP - np.arange(1, 17)).astype(np.float64) / TOP
    uniforms = jnp.asarray(np.concatenate([top, [0.0, 2.0**-24, 0.5]]), jnp.float32)
    for first, second in [(uniforms, uniforms), (uniforms[::-1], uniforms)]:
        ids = ids_over(first, second, jnp.asarray(logits))
        assert np.isfinite(logits[ids]).all(), f"impossible ids {ids[~np.isfinite(logits[ids])]}"


@pytest.mark.parametrize("width", [97, 255, 256, 257, 1954, 250112])
def test_the_inverse_is_the_float64_one(width):
    """The chosen index is the first whose cumulative share exceeds u, up to rounding of the sum."""
    generator = np.random.default_rng(width)
    mass = generator.exponential(size=width).astype(np.float32)
    mass[generator.random(width) < 0.3] = 0.0
    mass[-5:] = 0.0
    uniforms = np.concatenate([generator.random(64), [0.0, 1 - 2**-24]]).astype(np.float32)
    invert = jax.jit(jax.vmap(_invert, in_axes=(None, 0)))
    chosen = np.asarray(invert(jnp.asarray(mass)[None], jnp.asarray(uniforms)[:, None]))[:, 0]
    share = np.cumsum(mass.astype(np.float64)) / mass.sum(dtype=np.float64)
    assert (mass[chosen] > 0).all()
    assert (share[chosen] >= uniforms - 2e-6).all()
    assert (share[chosen] - mass[chosen] / mass.sum() <= uniforms + 2e-6).all()


@pytest.mark.parametrize("start", [0.0, 1.0])
def test_the_ends_of_the_unit_interval_are_the_first_and_last_possible_id(start):
    """Whatever the sum is rounded to, u → 1 chooses the last entry that has any mass."""
    mass = np.zeros((1, 600), np.float32)
    mass[0, [3, 500]] = 1.0, 1e-12
    uniform = jnp.asarray([min(start, 1 - 2**-24)], jnp.float32)
    assert int(_invert(jnp.asarray(mass), uniform)[0]) == 3  # 1e-12 is lost in float32
    mass[0, 500] = 1.0
    assert int(_invert(jnp.asarray(mass), uniform)[0]) == (500 if start else 3)


@pytest.mark.parametrize("vocabulary", [8, 250112])
def test_top_p_keeps_the_smallest_set_at_an_exact_boundary(vocabulary):
    """Shares ½, ¼, ⅛ and ⅛ are exact in float32: ¾ is reached by two ids, more than ¾ by three."""
    logits = np.full((1, vocabulary), -np.inf, np.float32)
    places = [vocabulary - 3, 1, vocabulary // 2, 2]
    logits[0, places] = np.log([0.5, 0.25, 0.125, 0.125]).astype(np.float32)
    keep = functools.partial(truncate_logits, jnp.asarray(logits))
    for top_p, kept in [(0.5, 1), (0.6, 2), (0.74, 2), (0.76, 4), (0.26, 1), (0.99, 4)]:
        got = np.flatnonzero(np.isfinite(np.asarray(keep(top_p=top_p))[0]))
        want = places[:kept]
        assert sorted(got) == sorted(want), top_p


def test_top_p_of_nearly_everything_keeps_everything_that_is_needed():
    """A float32 sum of 250112 shares need not reach 1 − 10⁻⁷: nothing breaks, nothing is lost."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 250112)), jnp.float32)
    kept = np.isfinite(np.asarray(truncate_logits(logits, top_p=1 - 1e-7)))
    share = np.exp(np.asarray(logits, np.float64))
    assert (share * kept).sum() / share.sum() > 1 - 1e-5
