"""Optimizers against T5X's own step, the papers' formulas in float64, and unstacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore
from flax import traverse_util

from gkd.distill import optimizers
from tests.distill import references


def steps(optimizer, params, gradients):
    """Parameters after one step for each tree of gradients."""
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = update(params, state, gradient)
    return params


def t5x_parameter(folder, step, path):
    """One parameter of a T5X checkpoint."""
    path = folder / f"checkpoint_{step}" / f"target.{path.replace('/', '.')}"
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec).result().read().result()


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


def layer_of(shape_of_bias, **kernels):
    """A layer's tree with a relative bias and attention kernels."""
    attention = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    bias = {"relpos_bias": {"rel_embedding": np.ones(shape_of_bias, np.float32)}}
    return {**bias, "self_attention": attention}


@pytest.mark.parametrize("form", ["a layer", "stacked", "three axes"])
def test_adafactor_factors_the_attention_of_scalable_t5_whatever_its_size(shared, form):
    """T5X took this step on kernels [embed 32, heads 4, kv 8], which its rules factor always."""
    folder = shared / "golden" / "t5x" / "t5v11_tiny_scanned"
    path = "decoder/decoder/self_attention/query/kernel"
    gradient = np.load(folder / "golden.npz")[f"grad/{path}"]
    before, after, gradient = (
        np.moveaxis(x, 1, 0).reshape(2, 32, 32)
        for x in (t5x_parameter(folder, 0, path), t5x_parameter(folder, 1, path), gradient)
    )
    if form == "stacked":
        trees = [{"layers": layer_of((2, 4, 32), query=x)} for x in (before, gradient)]
        got = steps(optimizers.adafactor(1e-2), trees[0], [trees[1]])["layers"]
        np.testing.assert_allclose(got["self_attention"]["query"]["kernel"], after, atol=2e-8)
        return
    shape = (32, 4, 8) if form == "three axes" else (32, 32)
    trees = [{"layers_1": layer_of((4, 32), query=x[1].reshape(shape))} for x in (before, gradient)]
    if form == "three axes":
        for tree in trees:
            del tree["layers_1"]["relpos_bias"]
    got = steps(optimizers.adafactor(1e-2), trees[0], [trees[1]])["layers_1"]
    kernel = got["self_attention"]["query"]["kernel"]
    assert kernel.shape == shape
    np.testing.assert_allclose(kernel.reshape(32, 32), after[1], atol=2e-8)


def test_every_parameter_is_factored_as_t5xs_rules_have_it():
    """Three steps in float64: attention kernels as a matrix, all else by the size of two axes."""
    random = np.random.default_rng(0)
    # name -> (shape, the matrix that T5X factors, None for none): embed 24, heads 3, kv 5.
    parameters = {
        "encoder/layers_0/attention/query/kernel": ((24, 15), (24, 15)),
        "encoder/layers_0/attention/out/kernel": ((15, 24), (15, 24)),
        "encoder/layers_0/relpos_bias/rel_embedding": ((3, 32), None),
        "encoder/layers_0/mlp/wi/kernel": ((24, 40), None),
        "encoder/layers_0/mlp/wo/kernel": ((128, 130), (128, 130)),
        "decoder/layers_0/self_attention/key/kernel": ((24, 15), None),  # no bias of its own
        "decoder/layers_0/encoder_decoder_attention/value/kernel": ((24, 3, 5), (24, 15)),
        "decoder/layers_0/encoder_decoder_attention/out/kernel": ((3, 5, 24), (15, 24)),
        "decoder/relpos_bias/rel_embedding": ((3, 32), None),
        "decoder/decoder_norm/scale": ((24,), None),
    }
    draws = [
        {name: np.float32(random.normal(size=shape)) for name, (shape, _) in parameters.items()}
        for _ in range(4)
    ]
    trees = [traverse_util.unflatten_dict(draw, sep="/") for draw in draws]
    got = steps(optimizers.adafactor(0.02), trees[0], trees[1:])
    got = traverse_util.flatten_dict(got, sep="/")
    for name, (shape, matrix) in parameters.items():
        start, *gradients = (draw[name].reshape(matrix or shape) for draw in draws)
        wanted = adafactor_in_float64(start, gradients, [0.02] * 3, matrix is not None)
        assert got[name].shape == shape
        np.testing.assert_allclose(got[name], wanted.reshape(shape), atol=1e-6, err_msg=name)


def adafactor_in_float64(params, gradients, learning_rates, factored, decay_rate=0.8, clip=1.0):
    """Shazeer & Stern 2018, algorithms 4 to 6, with relative step sizes."""
    p = np.float64(params)
    row = column = full = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, learning_rates, strict=True), start=1):
        decay, square = 1 - t**-decay_rate, np.float64(gradient) ** 2 + 1e-30
        row = decay * row + (1 - decay) * square.mean(axis=-1)
        column = decay * column + (1 - decay) * square.mean(axis=0)
        full = decay * full + (1 - decay) * square
        second_moment = np.outer(row, column) / row.mean() if factored else full
        update = gradient / np.sqrt(second_moment)
        update /= max(1.0, np.sqrt((update**2).mean()) / clip)
        p = p - rate * max(1e-3, np.sqrt((p**2).mean())) * update
    return p


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
