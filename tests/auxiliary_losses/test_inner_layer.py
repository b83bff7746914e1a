"""OISD's loss of an inner layer: float64 NumPy, signs, constants, and whole steps of a T5."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.auxiliary_losses import inner_layer
from gkd.auxiliary_losses.inner_layer import InnerLayerLoss, with_inner_layer_loss
from gkd.decode.sampling import sample
from gkd.distill import losses, step_functions, train_step
from gkd.distill.fused import fused_token_loss
from gkd.distill.types import Batch, Rollout
from gkd.models import t5
from gkd.models.interface import Head, InnerLayer, ProjectedLogits, with_inner_layer
from gkd.parallel import mesh as meshes
from tests.distill import references

ROWS, LENGTH, EMBED, VOCAB = 5, 4, 3, 6
LENGTHS = np.array([4, 2, 3, 1, 4])
EXAMPLES = np.array([1, 1, 2, 1, 0.0])  # the last row only fills up the batch
KEPT = np.arange(LENGTH) < LENGTHS[:, None]
ADVANTAGES = np.array([1.5, -0.5, -1.0, 0.0, 3.0])
VALID = np.array([False, True, True, True, False, True])
SETTINGS = InnerLayerLoss(layer=1, weight=0.7, attention_weight=0.3, beta=0.2)


def causal_attention(seed):
    logits = references.normal(seed, ROWS, LENGTH, LENGTH)
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    return np.float32(references.probabilities(np.where(causal, logits, -np.inf)))


def student_of(scale=1.0):
    inner = InnerLayer(
        references.normal(1, ROWS, LENGTH, EMBED, scale=0.7), *map(causal_attention, (2, 3))
    )
    head = Head(
        jnp.asarray(references.normal(4, VOCAB, EMBED, scale=0.7)), scale=scale, transposed=True
    )
    student = ProjectedLogits(references.normal(0, ROWS, LENGTH, EMBED, scale=0.7), head, inner)
    return jax.tree.map(jnp.asarray, student)


def rollout_of(advantages=ADVANTAGES):
    weights = jnp.asarray(KEPT * EXAMPLES[:, None], jnp.float32)
    tokens = jnp.asarray(np.where(KEPT, 2, 0))
    return Rollout(
        tokens, weights, 0 * weights, jnp.ones(ROWS, bool), jnp.zeros(ROWS),
        jnp.asarray(advantages, jnp.float32),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("settings", "block_size"))
def loss_of(student, advantages=ADVANTAGES, settings=SETTINGS, block_size=3):
    total, weight, metrics = inner_layer.inner_layer_loss(
        student, rollout_of(advantages), settings=settings, valid=jnp.asarray(VALID),
        block_size=block_size,
    )  # fmt: skip
    return total / weight, {name: value / w for name, (value, w) in metrics.items()}


def numpy_terms(student, teacher=None):
    """(mean divergence, times the advantage, mean divergence of attention) in float64."""
    teacher = student if teacher is None else teacher

    def read(hidden, of):
        logits = np.float64(hidden) @ np.float64(of.head.kernel).T * of.head.scale
        return references.probabilities(logits, VALID)

    def jsd(p, q):
        return references.from_probabilities("jsd_0.2", p, q)

    layer = jsd(read(teacher.hidden, teacher), read(student.inner.hidden, student))
    attention = jsd(np.float64(teacher.inner.last_attention), np.float64(student.inner.attention))

    def mean(values):
        rows = (values * KEPT).sum(axis=1) / LENGTHS
        return (EXAMPLES * rows).sum() / EXAMPLES.sum()

    return mean(layer), mean(ADVANTAGES[:, None] * layer), mean(attention)


@pytest.mark.parametrize("block_size", [1, 3, None])
def test_the_loss_is_numpys(block_size):
    student = student_of(scale=0.5)
    layer, signed, attention = numpy_terms(student)
    got, metrics = loss_of(student, block_size=block_size)
    assert float(got) == pytest.approx(0.7 * signed + 0.3 * attention, rel=1e-5)
    want = {
        "inner_divergence": layer,
        "signed_inner_divergence": signed,
        "attention_divergence": attention,
    }
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(want, rel=1e-5)


@functools.partial(jax.jit, static_argnames="settings")
def gradient(student, advantages=ADVANTAGES, settings=SETTINGS):
    loss = loss_of.__wrapped__  # a gradient through a jit is refused: the loss has its own
    return jax.grad(lambda student: loss(student, advantages, settings)[0])(student)


def moved(student, where, index, by):
    """The student in float64 with one number changed; attention still sums to 1 over the keys."""

    def change(path, leaf):
        leaf = np.array(leaf, np.float64)
        if jax.tree_util.keystr(path, simple=True, separator="/") == where:
            leaf[index] += by
            if where == "inner/attention":
                leaf[(*index[:-1], 0)] -= by
        return leaf

    return jax.tree_util.tree_map_with_path(change, student)


def test_the_gradient_is_that_of_a_loss_whose_last_layer_is_constant():
    student = student_of(scale=0.5)
    got = gradient(student)

    def slope(where, index):
        ends = []
        for by in (1e-5, -1e-5):
            _, signed, attention = numpy_terms(moved(student, where, index, by), student)
            ends.append(0.7 * signed + 0.3 * attention)
        return (ends[0] - ends[1]) / 2e-5

    for index in ((0, 1, 0), (1, 1, 1), (2, 2, 2), (2, 2, 1), (3, 0, 0)):
        want = slope("inner/hidden", index)
        assert float(got.inner.hidden[index]) == pytest.approx(want, abs=1e-6), index
        want, found = slope("inner/attention", index), got.inner.attention[index[:2]]
        assert float(found[index[2]] - found[0]) == pytest.approx(want, abs=1e-6), index
        want = slope("head/kernel", index[1:])
        assert float(got.head.kernel[index[1:]]) == pytest.approx(want, abs=1e-6), index
    np.testing.assert_array_equal(got.hidden, 0.0)
    np.testing.assert_array_equal(got.inner.last_attention, 0.0)
    assert float(jnp.abs(got.inner.hidden).max()) > 1e-3
    assert float(jnp.abs(got.inner.attention).max()) > 1e-3


def test_the_sign_of_the_gradient_is_that_of_the_advantage():
    settings = dataclasses.replace(SETTINGS, attention_weight=0.0)
    for_it = gradient(student_of(), ADVANTAGES, settings)
    against = gradient(student_of(), -ADVANTAGES, settings)
    assert float(jnp.abs(for_it.head.kernel).max()) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, atol=1e-7), for_it, against)
    # One step down the gradient brings the layers of a good row together, those of a bad one apart.
    hidden = student_of().inner.hidden - 0.1 * for_it.inner.hidden
    after = student_of().replace(inner=student_of().inner.replace(hidden=hidden))
    for row, sign in ((0, -1), (1, 1), (2, 1)):
        alone = np.eye(ROWS)[row]
        before_row, after_row = (
            loss_of(each, alone, settings)[0] for each in (student_of(), after)
        )
        assert np.sign(float(after_row - before_row)) == sign


def test_a_row_without_advantage_has_attention_alone():
    settings = dataclasses.replace(SETTINGS, attention_weight=0.0)
    value, metrics = loss_of(student_of(), np.zeros(ROWS), settings)
    assert value == 0 and float(metrics["inner_divergence"]) > 0.03
    nothing = gradient(student_of(), np.zeros(ROWS), settings)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), nothing)
    with_attention, metrics = loss_of(student_of(), np.zeros(ROWS))
    want = 0.3 * float(metrics["attention_divergence"])
    assert float(with_attention) == pytest.approx(want) and want > 0.01


def test_a_weight_of_zero_leaves_its_term_out():
    _, metrics = loss_of(student_of(), settings=dataclasses.replace(SETTINGS, weight=0.0))
    assert set(metrics) == {"attention_divergence"}
    _, metrics = loss_of(student_of(), settings=dataclasses.replace(SETTINGS, attention_weight=0.0))
    assert set(metrics) == {"inner_divergence", "signed_inner_divergence"}


def test_padding_enters_nothing_whatever_it_holds():
    student = student_of()
    keep = jnp.asarray(KEPT & (EXAMPLES > 0)[:, None])[..., None]
    spoilt = jax.tree.map(
        lambda leaf: jnp.where(keep, leaf, jnp.nan) if leaf.shape[:2] == keep.shape[:2] else leaf,
        student,
    )
    assert loss_of(spoilt)[0] == loss_of(student)[0]
    got, want = gradient(spoilt), gradient(student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), got, want)


def test_microbatches_add_up():
    student, rollout, totals = student_of(), rollout_of(), np.zeros(2)
    loss = jax.jit(functools.partial(
        inner_layer.inner_layer_loss, settings=SETTINGS, valid=jnp.asarray(VALID)
    ))  # fmt: skip
    for rows in (slice(0, 2), slice(2, 5)):
        part = jax.tree.map(
            lambda leaf, rows=rows: leaf[rows] if leaf.shape[0] == ROWS else leaf,
            (student, rollout),
        )
        total, weight, _ = loss(*part)
        totals += float(total), float(weight)
    assert totals[0] / totals[1] == pytest.approx(float(loss_of(student)[0]), abs=1e-7)


def test_other_losses_see_the_last_layer_only():
    """An inner layer that is carried along neither changes a loss nor has a gradient from it."""
    rollout, plain = rollout_of(), student_of().replace(inner=None)

    def loss(student):
        return fused_token_loss(
            lambda logits, _, ids: logits[..., 2], student, None, rollout.target_tokens,
            rollout.weights,
        )[0]  # fmt: skip

    (value, got), (want_value, want) = map(jax.value_and_grad(loss), (student_of(), plain))
    assert value == want_value
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), got.inner)
    jax.tree.map(np.testing.assert_array_equal, got.replace(inner=None), want)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer": 0}, "InnerLayerLoss.layer is 0: use 1"),
        ({"weight": -1.0}, "InnerLayerLoss.weight is -1.0: use 0 or more"),
        ({"attention_weight": -0.1}, "InnerLayerLoss.attention_weight is -0.1: use 0 or more"),
        ({"beta": 0.0}, "InnerLayerLoss.beta is 0.0"),
        ({"beta": 1}, "InnerLayerLoss.beta is 1: use more than 0, less than 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        InnerLayerLoss(**{"layer": 1, **changes})


CONFIG = t5.T5Config(
    vocab_size=16, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=1,
    num_decoder_layers=2,
)  # fmt: skip
SAMPLES, USED = 2, jnp.arange(16) > 0


def batch_of(prompts=8):
    random = np.random.RandomState(0)
    tokens = [jnp.asarray(random.randint(2, 16, (prompts, length))) for length in (5, 4)]
    return Batch(*tokens, jnp.ones(prompts).at[-1].set(0))


def policy_of(alpha=0.0):
    return functools.partial(
        losses.reward_and_divergence_loss, alpha=alpha, divergence=None, valid=USED
    )


def step_of(loss_fn=None, microbatches=1, **ways):
    """A step of a T5 whose reward is the share of even ids; gradient ascent shows as it is."""
    model = t5.as_seq2seq(dataclasses.replace(CONFIG, **ways))
    if loss_fn is None:
        loss_fn = with_inner_layer_loss(policy_of(), InnerLayerLoss(layer=1), USED)

    def reward_fn(params, batch, rollout):
        even = (rollout.target_tokens % 2 == 0) & (rollout.target_tokens > 0)
        return even.mean(axis=1)

    return train_step.make_train_step(
        with_inner_layer(model, 1), optax.sgd(1.0), divergence_loss_fn=loss_fn,
        sample_fn=step_functions.make_sample_fn(model, sample, USED, SAMPLES),
        on_policy_fraction=1.0, samples=SAMPLES, reward_fn=reward_fn,
        advantage="group_standardised", microbatches=microbatches,
    )  # fmt: skip


@functools.cache
def start():
    shapes = nn.meta.unbox(jax.eval_shape(t5.as_seq2seq(CONFIG).init, jax.random.key(0)))
    random = np.random.RandomState(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape) / np.sqrt(x.shape[0]), x.dtype), shapes
    )
    return train_step.init_state(params, optax.sgd(1.0), 3)


@functools.cache
def one_device():
    return jax.jit(step_of().step)(start(), None, batch_of())


def same(got, state):
    want_state, want = one_device()
    for name in ("loss", "inner_divergence", "signed_inner_divergence", "attention_divergence"):
        assert float(got[name][0] / got[name][1]) == pytest.approx(
            float(want[name][0] / want[name][1]), abs=1e-5
        ), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, want_state.params
    )


def test_a_step_is_the_same_in_stacked_layers():
    begun = start()
    begun = begun.replace(params=t5.stack_layers(begun.params))
    step = step_of(stacked_layers=True, remat=True).step
    state, metrics = jax.jit(step)(begun, None, batch_of())
    same(metrics, state.replace(params=t5.unstack_layers(state.params)))


def test_a_step_is_the_same_on_four_devices_in_microbatches():
    assert float(one_device()[1]["inner_divergence"][0]) > 0.1
    mesh = meshes.make_mesh(devices=jax.devices()[:4])
    whole = meshes.replicated(mesh)
    state = jax.device_put(jax.tree.map(jnp.copy, start()), whole)
    # One prompt a device and microbatch.
    step = meshes.compile_step(
        step_of(microbatches=2).step, mesh, jax.tree.map(lambda _: whole, state), None
    )
    got_state, got = step(state, None, meshes.place_batch(batch_of(), mesh))
    same(got, got_state)


def test_the_layers_above_the_inner_one_learn_from_the_rewards_alone():
    def without_policy(student, teacher, rollout):
        total, weight, metrics = policy_of()(student, teacher, rollout)
        return 0.0 * total, weight, metrics

    loss = with_inner_layer_loss(without_policy, InnerLayerLoss(layer=1), USED)
    state, _ = jax.jit(step_of(loss).step)(start(), None, batch_of())
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, start().params)
    decoder = change["decoder"]
    assert max(jax.tree.leaves(decoder["layers_1"])) == 0
    for part in ("layers_0", "decoder_norm", "logits_dense"):
        assert min(jax.tree.leaves(decoder[part])) > 1e-5, part


def test_the_terms_are_added_to_the_policy_gradients():
    plain, settings = policy_of(), InnerLayerLoss(layer=2, weight=0.5, beta=0.3)
    rollout = rollout_of()
    student = student_of()
    policy = functools.partial(plain, valid=jnp.asarray(VALID))
    total, weight, metrics = with_inner_layer_loss(policy, settings, jnp.asarray(VALID))(
        student, None, rollout
    )
    alone, want_weight, want = policy(student.replace(inner=None), None, rollout)
    inner, _ = loss_of(student, settings=settings)
    assert float(total) == pytest.approx(float(alone + inner * weight), rel=1e-6)
    assert weight == want_weight
    assert {name: metrics[name] for name in want} == want


def test_beta_is_the_last_layers_share():
    """Near 0 the divergence over β is KL(last‖inner), near 1 over 1−β KL(inner‖last)."""
    student, ones = student_of(), np.ones(ROWS)
    for beta, scale, direction in ((1e-4, 1e-4, "forward_kl"), (1 - 1e-4, 1e-4, "reverse_kl")):
        settings = InnerLayerLoss(layer=1, attention_weight=0.0, beta=beta)
        got = float(loss_of(student, ones, settings)[0]) / scale
        logits = [h @ student.head.kernel.T for h in (student.inner.hidden, student.hidden)]
        values = references.divergence(direction, *logits, valid=VALID)
        rows = (values * KEPT).sum(axis=1) / LENGTHS
        assert got == pytest.approx((EXAMPLES * rows).sum() / EXAMPLES.sum(), rel=2e-2)
