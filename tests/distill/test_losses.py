"""Normalisation, sums and weights, and rollouts, against numbers worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill import divergences, losses
from gkd.distill.logits import DenseLogits
from gkd.distill.rollouts import rollout_from_samples, rollout_from_targets
from gkd.distill.types import Batch, Rollout
from gkd.models.scoring import shift_right
from tests.distill import references

TINY = 1e-30


def rollout_of(weights, targets=None):
    weights = jnp.array(weights, jnp.float32)
    tokens = jnp.array(weights != 0, jnp.int32) if targets is None else jnp.array(targets)
    return Rollout(tokens, weights, jnp.zeros_like(weights), jnp.zeros(weights.shape[0], bool))


def given_loss(student_logits, teacher_logits, *, temperature, valid):
    """Stands in for a divergence: the loss of a token is its first logit."""
    return student_logits[..., 0]


def mean_of(values, weights, normalisation):
    """The normalised loss of rows whose per-token losses are given."""
    logits = DenseLogits(jnp.array(values, jnp.float32)[..., None])
    total, weight, _ = losses.divergence_loss(
        logits, logits, rollout_of(weights), divergence=given_loss, normalisation=normalisation
    )
    return float(total / jnp.maximum(weight, TINY))


@pytest.mark.parametrize("normalisation, mean", [("sequence", 2.5), ("token", 1.75)])
def test_the_design_example(normalisation, mean):
    values, weights = [[4, 9, 9], [1, 1, 1]], [[1, 0, 0], [1, 1, 1]]
    assert mean_of(values, weights, normalisation) == pytest.approx(mean)


@pytest.mark.parametrize("normalisation, mean", [("sequence", 1.75), ("token", 1.3)])
def test_an_examples_weight_counts_once_and_empty_rows_not_at_all(normalisation, mean):
    # Row 0 weighs 1, row 1 weighs 3, row 2 only fills up the batch, row 3 has no tokens.
    values = [[4, 9, 9], [1, 1, 1], [7, 7, 7], [5, 5, 5]]
    weights = [[1, 0, 0], [3, 3, 3], [0, 0, 0], [0, 0, 0]]
    assert mean_of(values, weights, normalisation) == pytest.approx(mean)


@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_an_empty_rollout_gives_zero_loss_and_gradient(normalisation):
    rollout = rollout_of(np.zeros((2, 3)))
    teacher = DenseLogits(jnp.full((2, 3, 5), jnp.nan))

    def loss(student):
        total, weight, _ = losses.divergence_loss(
            student, teacher, rollout,
            divergence=divergences.forward_kl, normalisation=normalisation,
        )  # fmt: skip
        return total / jnp.maximum(weight, TINY)

    value, gradient = jax.value_and_grad(loss)(DenseLogits(jnp.full((2, 3, 5), jnp.inf)))
    assert value == 0
    np.testing.assert_array_equal(gradient.values, 0.0)


def test_an_unknown_normalisation_is_named():
    with pytest.raises(ValueError, match="'batch': choose 'sequence' or 'token'"):
        losses.token_coefficients(rollout_of([[1.0]]), "batch")


@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_microbatches_add_up(normalisation):
    student, teacher = references.normal(0, 6, 5, 9), references.normal(1, 6, 5, 9)
    weights = np.arange(5) < np.array([5, 2, 0, 4, 1, 3])[:, None]
    weights = weights * np.array([1, 2, 1, 0.5, 1, 1], np.float32)[:, None]
    loss_fn = losses.make_divergence_loss(divergences.reverse_kl, normalisation)

    def part(rows):
        return loss_fn(
            DenseLogits(jnp.array(student[rows])),
            DenseLogits(jnp.array(teacher[rows])),
            rollout_of(weights[rows]),
        )

    parts = [part(slice(start, start + 2)) for start in (0, 2, 4)]
    total, weight = (sum(float(p[i]) for p in parts) for i in (0, 1))
    per_token = references.divergence("reverse_kl", student, teacher)
    tokens = np.maximum((weights > 0).sum(1, keepdims=True), 1)
    coefficients = weights / tokens if normalisation == "sequence" else weights
    assert total == pytest.approx((coefficients * per_token).sum(), rel=1e-5)
    assert weight == pytest.approx(coefficients.sum(), rel=1e-6)
    whole = part(slice(None))
    assert float(whole[0] / whole[1]) == pytest.approx(total / weight, rel=1e-5)
    assert float(losses.token_coefficients(rollout_of(weights), normalisation)[1]) == float(
        whole[1]
    )


def test_golden_masked_mean_and_gradient(shared):
    golden = np.load(shared / "golden" / "losses.npz")
    teacher = DenseLogits(jnp.array(golden["teacher_logits"]))
    rollout = rollout_of(golden["mask"])
    loss_fn = losses.make_divergence_loss(
        functools.partial(divergences.generalized_jsd, beta=0.1), "token", temperature=2.0
    )

    def loss(values):
        total, weight, _ = loss_fn(DenseLogits(values), teacher, rollout)
        return total / weight

    value, gradient = jax.value_and_grad(loss)(jnp.array(golden["student_logits"]))
    assert float(value) == pytest.approx(golden["trl_batchmean_masked_f64"][1, 2], rel=2e-6)
    expected = golden["trl_grad_student_batchmean_masked"][1, 2]
    np.testing.assert_allclose(gradient, expected, atol=2e-7)


def test_metrics_are_pairs_of_sums_and_weights():
    student, teacher = references.normal(2, 3, 4, 8), references.normal(3, 3, 4, 8)
    valid = np.arange(8) < 6
    loss_fn = losses.make_divergence_loss(
        divergences.forward_kl, valid=jnp.array(valid), with_entropies=True
    )
    weights = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    rollout = rollout_of(weights)
    total, weight, metrics = loss_fn(
        DenseLogits(jnp.array(student)), DenseLogits(jnp.array(teacher)), rollout
    )
    coefficients = weights / np.array([[2], [4], [1]])
    p, q = (references.probabilities(x[..., :6]) for x in (teacher, student))
    expected = {
        "divergence": references.divergence("forward_kl", student[..., :6], teacher[..., :6]),
        "student_entropy": -(q * np.log(q)).sum(-1),
        "teacher_entropy": -(p * np.log(p)).sum(-1),
    }
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert float(metrics[name][0]) == pytest.approx((coefficients * values).sum(), rel=1e-5)
        assert float(metrics[name][1]) == 2.0
    assert float(total) == float(metrics["divergence"][0]) and float(weight) == 2.0


def test_cross_entropy_uses_raw_logits_at_the_targets():
    logits = references.normal(4, 2, 3, 7)
    targets = np.array([[3, 6, 1], [2, 1, 0]], np.int32)
    logits[0, 1, 6], logits[1, 0, 2] = 9.0, -9.0
    rollout = rollout_of([[1, 1, 1], [1, 1, 0]], targets)
    loss_fn = losses.make_cross_entropy_loss("token")
    total, weight, metrics = loss_fn(DenseLogits(jnp.array(logits)), None, rollout)
    log_q = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_q, targets[..., None], -1)[..., 0]
    used = np.array([[1, 1, 1], [1, 1, 0]])
    assert float(total) == pytest.approx(-(chosen * used).sum(), rel=1e-6)
    assert float(weight) == 5.0
    right = ((logits.argmax(-1) == targets) * used).sum()
    assert metrics["token_accuracy"] == (right, 5.0) and 0 < right < 5


def test_golden_cross_entropy_of_hugging_face(shared):
    golden = np.load(shared / "golden" / "hf" / "t5v11_tiny" / "golden.npz")
    labels = np.maximum(golden["labels"], 0)
    batch = Batch(golden["input_ids"], jnp.array(labels), jnp.ones(len(labels)))
    loss_fn = losses.make_cross_entropy_loss("token")
    total, weight, _ = loss_fn(
        DenseLogits(jnp.array(golden["logits"])), None, rollout_from_targets(batch)
    )
    assert float(total / weight) == pytest.approx(float(golden["ce_mean_f64"]), rel=2e-6)
    decoder_inputs = np.asarray(shift_right(jnp.array(labels)))
    mask = golden["decoder_attention_mask"]
    np.testing.assert_array_equal(decoder_inputs * mask, golden["decoder_input_ids"] * mask)


def test_rollout_from_targets_counts_every_token_through_the_last():
    tokens = jnp.array([[5, 1, 0, 0], [5, 0, 1, 0], [5, 6, 7, 8], [0, 0, 0, 0], [4, 1, 0, 0]])
    rollout = rollout_from_targets(Batch(None, tokens, jnp.array([1.0, 1.0, 2.0, 1.0, 0.0])))
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [2, 2, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(rollout.weights, expected)
    np.testing.assert_array_equal(rollout.log_probs, 0.0)
    assert not rollout.on_policy.any()


def test_rollout_from_samples_follows_the_lengths_and_stops_gradients():
    tokens = jnp.array([[5, 1, 0], [5, 6, 7], [1, 0, 0]])
    log_probs = -jnp.arange(1.0, 10.0).reshape(3, 3)

    def build(log_probs, weights):
        return rollout_from_samples(tokens, log_probs, jnp.array([2, 3, 1]), weights)

    weights = jnp.array([1.0, 0.5, 1.0])
    rollout = build(log_probs, weights)
    np.testing.assert_array_equal(rollout.weights, [[1, 1, 0], [0.5, 0.5, 0.5], [1, 0, 0]])
    np.testing.assert_array_equal(rollout.log_probs, [[-1, -2, 0], [-4, -5, -6], [-7, 0, 0]])
    assert rollout.on_policy.all()
    slope = jax.grad(lambda x: (build(x, weights).log_probs).sum())(log_probs)
    np.testing.assert_array_equal(slope, 0.0)


def test_shift_right_starts_with_zero():
    shifted = shift_right(jnp.array([[5, 6, 1], [7, 1, 0]]))
    np.testing.assert_array_equal(shifted, [[0, 5, 6], [0, 7, 1]])
