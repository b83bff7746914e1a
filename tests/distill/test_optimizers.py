"""Optimizers against T5X's own step, the papers' formulas in float64, and unstacked layers."""

import jax
import numpy as np
import optax
import pytest

from gkd.distill import optimizers
from tests.distill import references
from tests.distill.adafactor_references import adafactor_in_float64, steps, t5x_parameter


@pytest.mark.parametrize(
    "path", ["token_embedder/embedding", "decoder/layers_0/self_attention/query/kernel"]
)
def test_adafactor_takes_the_step_that_t5x_took(shared, path):
    folder = shared / "golden" / "t5x" / "t5v11_tiny_unscanned"
    before, after = (t5x_parameter(folder, step, path) for step in (0, 1))
    gradient = np.load(folder / "golden.npz")[f"grad/{path}"]
    actual = steps(optimizers.adafactor(1e-2), {"kernel": before}, [{"kernel": gradient}])
    np.testing.assert_allclose(actual["kernel"], after, atol=1e-8)
    assert np.abs(after - before).max() > 1e-4


def test_adafactor_takes_t5xs_factored_step_on_stacked_layers(shared):
    folder = shared / "golden" / "t5x" / "t5v11_tiny_scanned"
    path = "decoder/decoder/self_attention/query/kernel"
    gradient = np.load(folder / "golden.npz")[f"grad/{path}"]
    # T5X stacks as [embed, layers, heads, kv] and, given logical axes, factors any size.
    before, after, gradient = (
        np.moveaxis(x, 1, 0).reshape(2, 32, 32)
        for x in (t5x_parameter(folder, 0, path), t5x_parameter(folder, 1, path), gradient)
    )
    optimizer = optimizers.adafactor(1e-2, min_dim_size_to_factor=32)
    stacked = steps(optimizer, {"layers": {"kernel": before}}, [{"layers": {"kernel": gradient}}])
    np.testing.assert_allclose(stacked["layers"]["kernel"], after, atol=2e-8)


@pytest.mark.parametrize("shape, factored", [((128, 160), True), ((127, 160), False)])
def test_adafactor_over_three_steps_with_a_schedule(shape, factored):
    start = references.normal(0, *shape, scale=0.05)
    gradients = [references.normal(seed, *shape, scale=10.0 ** (seed - 3)) for seed in (1, 2, 3)]
    optimizer = optimizers.adafactor(
        optimizers.warmup_constant_cooldown(0.02, warmup_steps=2, total_steps=10)
    )
    params = steps(optimizer, {"kernel": start}, [{"kernel": x} for x in gradients])
    expected = adafactor_in_float64(start, gradients, [0.0, 0.01, 0.02], factored)
    np.testing.assert_allclose(params["kernel"], expected, atol=1e-7)
    assert np.abs(expected - start).max() > 1e-3


def test_adafactors_settings_are_its_formulas():
    start = references.normal(0, 6, 8, scale=0.05)
    gradients = [references.normal(seed, 6, 8, scale=10.0 ** (seed - 3)) for seed in (1, 2, 3)]
    optimizer = optimizers.adafactor(
        0.1, decay_rate=0.5, clipping_threshold=0.3, min_dim_size_to_factor=4
    )
    params = steps(optimizer, {"kernel": start}, [{"kernel": x} for x in gradients])
    expected = adafactor_in_float64(start, gradients, [0.1] * 3, True, decay_rate=0.5, clip=0.3)
    np.testing.assert_allclose(params["kernel"], expected, atol=1e-7)
    # An absolute rate: the first step is the gradient's sign, cut to a root mean square of 0.3.
    absolute = optimizers.adafactor(
        0.1, multiply_by_parameter_scale=False, clipping_threshold=0.3, min_dim_size_to_factor=99
    )
    after = steps(absolute, {"kernel": start}, [{"kernel": gradients[0]}])["kernel"]
    np.testing.assert_allclose(after, start - 0.03 * np.sign(gradients[0]), atol=1e-6)


def test_adamws_settings_are_its_formulas():
    weights, gradients = references.normal(4, 3, 5), references.normal(5, 2, 3, 5)
    optimizer = optimizers.adamw(1e-2, b1=0.5, b2=0.7, eps=0.1)
    params = steps(optimizer, {"kernel": weights}, [{"kernel": x} for x in gradients])
    p, m, v = np.float64(weights), 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.5 * m + 0.5 * gradient, 0.7 * v + 0.3 * np.float64(gradient) ** 2
        p = p - 1e-2 * m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.7**t)) + 0.1)
    np.testing.assert_allclose(params["kernel"], p, rtol=2e-5)


def test_adamw_follows_its_formula_and_spares_the_scales():
    weights, gradients = references.normal(4, 3, 5), references.normal(5, 2, 3, 5)
    params = steps(
        optimizers.adamw(1e-2, weight_decay=0.1),
        {"kernel": weights, "scale": np.ones(5, np.float32)},
        [{"kernel": x, "scale": np.zeros(5, np.float32)} for x in gradients],
    )
    p, m, v = np.float64(weights), 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * np.float64(gradient) ** 2
        direction = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p - 1e-2 * (direction + 0.1 * p)
    np.testing.assert_allclose(params["kernel"], p, rtol=2e-5)
    np.testing.assert_array_equal(params["scale"], 1.0)


def test_adafactors_weight_decay_is_a_share_per_step():
    params = {"kernel": np.full((2, 3), 4.0, np.float32), "scale": np.ones(3, np.float32)}
    zeros = jax.tree.map(np.zeros_like, params)
    after = steps(optimizers.adafactor(1e-2, weight_decay=0.25), params, [zeros])
    np.testing.assert_allclose(after["kernel"], 3.0)
    np.testing.assert_array_equal(after["scale"], 1.0)


def test_the_schedule_rises_stays_and_falls():
    schedule = optimizers.warmup_constant_cooldown(1.0, 4, 12, cooldown_steps=4)
    rates = [float(schedule(step)) for step in range(14)]
    assert rates == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    constant = optimizers.warmup_constant_cooldown(0.5, 0, 10)
    assert [float(constant(step)) for step in (0, 5, 20)] == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"warm-up \(8 steps\) and cool-down \(5\) exceed"):
        optimizers.warmup_constant_cooldown(1.0, 8, 12, cooldown_steps=5)


@pytest.mark.parametrize("make", [optimizers.adamw, optimizers.adafactor])
def test_gradients_are_clipped_to_a_global_norm_across_stacks_and_the_rest(make):
    # Both forget a gradient's size in the first step, and remember it in the second.
    ones = {"layers": {"kernel": np.ones((2, 2), np.float32)}, "kernel": np.ones(5, np.float32)}
    large, cut, small = (jax.tree.map(lambda x, s=s: s * x, ones) for s in (4.0, 1 / 3, 0.1))
    clipped = steps(make(1e-2, max_norm=1.0), ones, [large, small])
    by_hand = steps(make(1e-2), ones, [cut, small])  # 9 thirds have the norm 1
    unclipped = steps(make(1e-2), ones, [large, small])
    for a, b, c in zip(*map(jax.tree.leaves, (clipped, by_hand, unclipped)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert np.abs(a - c).max() > 1e-4


def test_stacked_layers_equal_unstacked_ones_after_three_steps():
    shapes = {"wi": (128, 130), "wo": (130, 128), "scale": (7,)}

    def tree(seed):
        """Three encoder and two decoder layers of very different size, and an embedding."""
        return {
            "embedding": references.normal(seed, 140, 128),
            **{
                f"{part}/layers_{i}/{name}": 10.0**i * references.normal(seed + i, *shape)
                for part, layers in (("encoder", 3), ("decoder", 2))
                for i in range(layers)
                for name, shape in shapes.items()
            },
        }

    def nested(flat, stack):
        result = {"embedding": flat["embedding"]}
        for part, layers in (("encoder", 3), ("decoder", 2)):
            each = [
                {name: flat[f"{part}/layers_{i}/{name}"] for name in shapes} for i in range(layers)
            ]
            if stack:
                result[part] = {"layers": jax.tree.map(lambda *x: np.stack(x), *each)}
            else:
                result[part] = {f"layers_{i}": layer for i, layer in enumerate(each)}
        return result

    def three_steps(optimizer, stack):
        return steps(
            optimizer, nested(tree(0), stack), [nested(tree(s), stack) for s in (9, 19, 29)]
        )

    # The unstacked side is optax's own optimizer, without anything of ours.
    plain = three_steps(optax.adafactor(0.1), stack=False)
    stacked = three_steps(optimizers.adafactor(0.1), stack=True)
    np.testing.assert_allclose(stacked["embedding"], plain["embedding"], rtol=1e-6)
    for part, layers in (("encoder", 3), ("decoder", 2)):
        for i in range(layers):
            for name in shapes:
                np.testing.assert_allclose(
                    stacked[part]["layers"][name][i],
                    plain[part][f"layers_{i}"][name],
                    rtol=1e-5,
                    atol=1e-6,
                )
