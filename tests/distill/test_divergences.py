"""Divergences against DESIGN's table, losses.npz, closed forms and extreme logits."""

import functools
import math

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill import divergences
from gkd.distill.logits import entropy, token_log_prob
from tests.distill import references

ALL = {name: jax.jit(each) for name, each in divergences.reported_divergences().items()}
P, Q = np.array([0.7, 0.2, 0.1], np.float32), np.array([0.2, 0.5, 0.3], np.float32)
TEACHER, STUDENT = jnp.log(P), jnp.log(Q)


@functools.partial(jax.jit, static_argnums=0)
def outcome(divergence, student, teacher, temperature=1.0, valid=None):
    """The divergence, and the gradients of its sum for both logits: one program for all tests."""

    def total(student, teacher):
        return divergence(student, teacher, temperature=temperature, valid=valid).sum()

    values = divergence(student, teacher, temperature=temperature, valid=valid)
    return values, *jax.grad(total, (0, 1))(student, teacher)


def gradient(divergence, student, teacher, **options):
    """The gradient of the divergence's sum for the student's logits."""
    return outcome(divergence, student, teacher, **options)[1]


@pytest.mark.parametrize(
    "name, value",
    [
        ("forward_kl", 0.583815),
        ("reverse_kl", 0.537176),
        ("total_variation", 0.5),
        ("jsd_0.1", 0.050995),
        ("jsd_0.5", 0.132918),
        ("jsd_0.9", 0.047864),
    ],
)
def test_values_of_the_design_table(name, value):
    assert float(ALL[name](STUDENT, TEACHER)) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("forward_kl", [-0.5, 0.3, 0.2]),
        ("reverse_kl", [-0.357988, 0.189557, 0.168431]),
        ("jsd_0.9", [-0.032122, 0.017455, 0.014666]),
    ],
)
def test_gradients_of_the_design_table(name, expected):
    np.testing.assert_allclose(gradient(ALL[name], STUDENT, TEACHER), expected, atol=1e-6)


@pytest.mark.parametrize("name, value", [("forward_kl", 0.152678), ("reverse_kl", 0.140758)])
def test_temperature_divides_both_logits_without_rescaling_the_loss(name, value):
    for temperature in (2.0, (2.0, 2.0)):
        result = ALL[name](STUDENT, TEACHER, temperature=temperature)
        assert float(result) == pytest.approx(value, abs=1e-6)


def test_a_pair_of_temperatures_is_student_then_teacher():
    result = divergences.forward_kl(STUDENT, TEACHER, temperature=(2.0, 1.0))
    expected = references.divergence("forward_kl", np.log(Q) / 2, np.log(P))
    assert float(result) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("name", ["skew_forward_kl", "skew_reverse_kl"])
def test_skew_divergences_equal_their_definition(name):
    student, teacher = references.normal(0, 5, 40), references.normal(1, 5, 40)
    expected = references.divergence(name, student, teacher)
    divergence = getattr(divergences, name)
    np.testing.assert_allclose(divergence(jnp.array(student), jnp.array(teacher)), expected, 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_gradients_equal_float64_ones_with_and_without_a_valid_mask(name):
    student, teacher = references.normal(2, 6, 50), references.normal(3, 6, 50)
    for valid in (None, np.arange(50) % 7 != 3):
        mask = None if valid is None else jnp.array(valid)
        expected = references.divergence_gradient(name, student, teacher, 0.7, valid)
        actual = gradient(
            ALL[name], jnp.array(student), jnp.array(teacher), temperature=0.7, valid=mask
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "losses.npz")


def golden_divergence(beta):
    return ALL[{0: "forward_kl", 1: "reverse_kl"}.get(beta, f"jsd_{beta}")]


def test_golden_losses_at_every_beta_and_temperature(golden):
    student, teacher = jnp.array(golden["student_logits"]), jnp.array(golden["teacher_logits"])
    mask = golden["mask"]
    for b, beta in enumerate(golden["betas"]):
        for t, temperature in enumerate(golden["temperatures"]):
            loss, options = golden_divergence(beta), {"temperature": float(temperature)}
            values, slopes, _ = map(np.asarray, outcome(loss, student, teacher, **options))
            trl = golden["trl_per_token"][b, t]
            np.testing.assert_allclose(values * mask, trl * mask, atol=3e-6)
            if 0 < beta < 1:
                np.testing.assert_allclose(values, golden["ref_jsd"][b, t], atol=2e-6)
            mean = (values * mask).sum() / mask.sum()
            np.testing.assert_allclose(mean, golden["trl_batchmean_masked_f64"][b, t], rtol=2e-6)
            weights = jnp.array(mask / mask.sum())[..., None]
            grad = slopes * weights
            np.testing.assert_allclose(
                grad, golden["trl_grad_student_batchmean_masked"][b, t], atol=2e-7
            )


def test_golden_references_at_every_temperature(golden):
    student, teacher = jnp.array(golden["student_logits"]), jnp.array(golden["teacher_logits"])
    for t, temperature in enumerate(golden["temperatures"]):
        temperature = float(temperature)
        for name, key in (
            ("forward_kl", "ref_forward_kl"),
            ("reverse_kl", "ref_reverse_kl"),
            ("total_variation", "ref_tvd"),
        ):
            values, *_ = outcome(ALL[name], student, teacher, temperature=temperature)
            np.testing.assert_allclose(values, golden[key][t], rtol=2e-6)
        for logits, key in ((student, "ref_entropy_student"), (teacher, "ref_entropy_teacher")):
            values = entropy(logits, temperature=temperature)
            np.testing.assert_allclose(values, golden[key][t], atol=2e-6)


def test_token_log_prob_is_the_log_softmax_at_the_target():
    logits, targets = references.normal(4, 3, 5, 20), np.arange(15).reshape(3, 5)
    p = np.exp(logits.astype(np.float64))
    expected = np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0] / p.sum(-1))
    actual = token_log_prob(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.03, 0.1, 0.5, 0.8])
def test_jsd_symmetry_and_bound(beta):
    student, teacher = jnp.array(references.normal(5, 30, 40, scale=6)), jnp.array(
        references.normal(6, 30, 40, scale=6)
    )  # fmt: skip
    one_way = divergences.generalized_jsd(student, teacher, beta=beta)
    other_way = divergences.generalized_jsd(teacher, student, beta=1 - beta)
    np.testing.assert_allclose(one_way, other_way, atol=1e-6)
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert one_way.min() >= 0 and one_way.max() <= bound + 1e-6
    disjoint = divergences.generalized_jsd(
        jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0]), beta=beta
    )
    assert float(disjoint) == pytest.approx(bound, abs=1e-6)


def test_a_share_that_float32_rounds_away_still_bounds_the_divergence():
    student, teacher = jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])
    value = divergences.skew_forward_kl(student, teacher, alpha=1e-9)
    assert float(value) == pytest.approx(-math.log(1e-9), rel=1e-6)


def test_jsd_limits_are_the_two_kl_divergences():
    jsd = divergences.generalized_jsd
    assert float(jsd(STUDENT, TEACHER, beta=1e-4)) / 1e-4 == pytest.approx(0.583815, rel=2e-3)
    assert float(jsd(STUDENT, TEACHER, beta=1 - 1e-4)) / 1e-4 == pytest.approx(0.537176, rel=2e-3)
    rescaled = jsd(STUDENT, TEACHER, beta=0.1, rescale=True)
    assert float(rescaled) == pytest.approx(0.050995 / 0.09, rel=2e-5)
    plain = gradient(functools.partial(jsd, beta=0.9), STUDENT, TEACHER)
    scaled = gradient(functools.partial(jsd, beta=0.9, rescale=True), STUDENT, TEACHER)
    np.testing.assert_allclose(scaled, plain / 0.09, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_equal_logits_give_exactly_zero_loss_and_gradient(name):
    logits = jnp.array(references.normal(7, 4, 1000))
    for result in outcome(ALL[name], logits, logits):
        np.testing.assert_array_equal(result, 0.0)


@pytest.mark.parametrize("name", ALL)
def test_a_shift_of_all_logits_changes_nothing(name):
    student, teacher = (
        jnp.array(references.normal(8, 4, 1000)),
        jnp.array(references.normal(9, 4, 1000)),
    )
    plain, slopes, to_teacher = outcome(ALL[name], student, teacher)
    shifted, *_ = outcome(ALL[name], student + 64, teacher - 32)
    np.testing.assert_allclose(shifted, plain, atol=1e-4)
    np.testing.assert_allclose(slopes.sum(-1), 0.0, atol=1e-6)
    np.testing.assert_array_equal(to_teacher, 0.0, err_msg="nothing flows to the teacher")


@pytest.mark.parametrize("name", ALL)
def test_unusable_ids_carry_no_probability_and_no_gradient(name):
    student, teacher = references.normal(10, 6, 38), references.normal(11, 6, 38)
    # What stands at an unusable id is arbitrary: padded rows of an embedding table.
    others = 50 + teacher[:, :12], -student[:, :12]
    padded = [
        np.concatenate(pair, axis=-1) for pair in zip((student, teacher), others, strict=True)
    ]
    valid = jnp.arange(50) < 38
    actual, grad, _ = outcome(ALL[name], *map(jnp.array, padded), valid=valid)
    np.testing.assert_allclose(actual, references.divergence(name, student, teacher), atol=2e-6)
    np.testing.assert_array_equal(grad[:, 38:], 0.0)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_logits_are_computed_in_float32(name):
    student, teacher = (jnp.array(references.normal(s, 16, 6), jnp.bfloat16) for s in (12, 13))
    actual, slopes, _ = outcome(ALL[name], student, teacher)
    assert actual.dtype == jnp.float32
    expected = references.divergence(name, student, teacher)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert slopes.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: divergences.generalized_jsd(STUDENT, TEACHER, beta=0.0), "forward_kl"),
        (lambda: divergences.generalized_jsd(STUDENT, TEACHER, beta=1.0), "reverse_kl"),
        (lambda: divergences.skew_forward_kl(STUDENT, TEACHER, alpha=0.0), "forward_kl"),
        (lambda: divergences.skew_reverse_kl(STUDENT, TEACHER, alpha=1.5), "alpha < 1, got 1.5"),
        (
            lambda: divergences.forward_kl(jnp.zeros((2, 32128)), jnp.zeros((2, 250112))),
            "teacher vocabulary has 250112 ids, student 32128",
        ),
        (
            lambda: divergences.forward_kl(jnp.zeros((2, 5)), jnp.zeros((3, 5))),
            r"\(2, 5\), teacher logits \(3, 5\)",
        ),
        (
            lambda: divergences.forward_kl(STUDENT, TEACHER, valid=jnp.ones(4, bool)),
            "valid mask has 4 ids, the logits 3",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_them(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


EXTREME = hypothesis.strategies.one_of(
    hypothesis.strategies.floats(-30, 30, width=32),
    hypothesis.strategies.sampled_from([1e30, -1e30, 1e4, -1e4, -np.inf, 0.0, 88.0, -104.0, 1e-30]),
)
PAIRS = hypothesis.extra.numpy.arrays(np.float32, (2, 16, 6), elements=EXTREME)


@pytest.mark.parametrize("name", ALL)
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(pair=PAIRS, half=hypothesis.strategies.booleans())
def test_extreme_logits_give_finite_values_and_gradients(name, pair, half):
    student, teacher = (jnp.array(x, jnp.bfloat16 if half else jnp.float32) for x in pair)
    values, grads = (np.asarray(x, np.float32) for x in outcome(ALL[name], student, teacher)[:2])
    assert np.isfinite(values).all() and values.min() >= 0
    assert np.isfinite(grads).all()
    # Rows that are −inf throughout have no definition, and an infinite divergence no number.
    expected = references.divergence(name, student, teacher)
    defined = np.isfinite(pair.max(axis=-1)).all(axis=0) & (expected < 1e3)
    np.testing.assert_allclose(values[defined], expected[defined], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_no_divergence_is_negative_also_where_it_is_differentiated(name):
    """Nearly equal distributions: rounding leaves many of 400 sums below zero, by up to 10⁻⁷."""
    teacher = references.normal(5, 400, 60)
    student = teacher + references.normal(6, 400, 60, scale=1e-5)

    def total(student):
        values = ALL[name](student, jnp.asarray(teacher))
        return values.sum(), values

    (_, values), _ = jax.value_and_grad(total, has_aux=True)(jnp.asarray(student))
    assert (np.asarray(values) >= 0).all() and (np.asarray(values) == 0).any()
    np.testing.assert_allclose(values, references.divergence(name, student, teacher), atol=1e-6)
