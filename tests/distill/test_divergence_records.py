"""Records of divergences: found through wrappers, with the parameters that reach the function."""

import functools

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.distill import divergences, losses
from gkd.distill.divergence_records import DivergenceRecord, divergence, record_of
from gkd.distill.logits import DenseLogits
from gkd.distill.truncated_teacher import check_top_k
from gkd.distill.types import Rollout
from tests.distill import references

P, Q = np.array([0.7, 0.2, 0.1], np.float32), np.array([0.2, 0.5, 0.3], np.float32)
TEACHER, STUDENT = jnp.log(P), jnp.log(Q)


def wrapped_by_gin(function):
    """The same function as gin calls it: with an argument from a binding."""
    name = f"{function.__name__}_of_test_divergence_records"
    return gin.external_configurable(function, name, module="test")


def test_a_function_of_gin_keeps_its_record_and_its_bindings():
    wrapped = wrapped_by_gin(divergences.skew_forward_kl)
    assert wrapped is not divergences.skew_forward_kl
    record = record_of(wrapped)
    assert (record.name, record.options) == ("skew_forward_kl", ("alpha",))
    with gin.unlock_config():
        gin.bind_parameter("test.skew_forward_kl_of_test_divergence_records.alpha", 0.4)
    want = references.kullback_leibler(np.float64(P), 0.4 * P + 0.6 * Q)
    assert float(record(STUDENT, TEACHER)) == pytest.approx(want, rel=1e-5)


def test_wrapped_functions_are_recognised_by_their_record():
    reverse = jax.jit(wrapped_by_gin(divergences.reverse_kl))
    assert not record_of(reverse).finite_on_truncation
    with pytest.raises(ValueError, match="reverse_kl is infinite"):
        check_top_k(functools.partial(reverse), "renormalise", 1.0)
    sampled = wrapped_by_gin(divergences.sampled_token_reverse_kl)
    assert record_of(sampled).on_policy_only and record_of(sampled).needs_sampled_token
    with pytest.raises(ValueError, match="outside of the teacher's top-k ids"):
        check_top_k(sampled, "bucket", 1.0)


@pytest.mark.parametrize("beta, value", [(0.1, 0.050995), (0.5, 0.132918), (0.9, 0.047864)])
def test_a_parameter_reaches_the_divergence_from_a_partial_and_from_bind(beta, value):
    """Numbers of DESIGN.md's table, through the loss."""
    for bound in (
        functools.partial(divergences.generalized_jsd, beta=beta),
        record_of(divergences.generalized_jsd).bind(beta=beta),
        record_of(functools.partial(divergences.generalized_jsd, beta=beta)).bind(rescale=False),
    ):
        one = jnp.ones((1, 1))
        rollout = Rollout(jnp.ones((1, 1), jnp.int32), one, one, jnp.ones(1, bool))
        total, weight, _ = losses.divergence_loss(
            DenseLogits(STUDENT[None, None]), DenseLogits(TEACHER[None, None]), rollout,
            divergence=bound,
        )  # fmt: skip
        assert float(total / weight) == pytest.approx(value, abs=1e-6)


def test_unknown_missing_and_doubled_parameters_are_one_line():
    jsd = record_of(divergences.generalized_jsd)
    with pytest.raises(ValueError, match="^generalized_jsd needs a value of beta$"):
        jsd.bind(rescale=True)
    with pytest.raises(ValueError, match="has no parameter alpha: it takes beta, rescale, clip$"):
        jsd.bind(alpha=0.1)
    with pytest.raises(ValueError, match="^reverse_kl has no parameter beta: it takes none$"):
        record_of(divergences.reverse_kl).bind(beta=0.1)
    with pytest.raises(ValueError, match="already bound to 0.1: set it once$"):
        jsd.bind(beta=0.1).bind(beta=0.2)
    with pytest.raises(ValueError, match="has no parameter temperature"):
        record_of(functools.partial(divergences.forward_kl, temperature=2.0))
    with pytest.raises(ValueError, match="binds positional arguments"):
        record_of(functools.partial(divergences.forward_kl, STUDENT))


def test_a_function_that_nobody_registered_has_a_plain_record():
    def squared(student_logits, teacher_logits, *, power=2, temperature=1.0, valid=None):
        return jnp.sum((student_logits - teacher_logits) ** power, axis=-1)

    record = record_of(squared)
    assert record == DivergenceRecord(function=squared, name="squared")
    assert record_of(record) is record
    want = float(np.sum((np.log(Q) - np.log(P)) ** 4))
    fourth = record_of(functools.partial(squared, power=4)).bind()
    assert float(fourth(STUDENT, TEACHER)) == pytest.approx(want, rel=1e-5)


def test_a_registered_divergence_is_reported_by_evaluation(monkeypatch):
    from gkd.distill import divergence_records

    monkeypatch.setattr(divergence_records, "_REGISTERED", [*divergence_records._REGISTERED])

    @divergence(parameters=("power",), reported={"power_3": {"power": 3.0}})
    def power_distance(student_logits, teacher_logits, *, power, temperature=1.0, valid=None):
        return jnp.sum(jnp.abs(student_logits - teacher_logits) ** power, axis=-1)

    reported = divergences.reported_divergences()
    assert list(reported) == [
        "forward_kl", "reverse_kl", "total_variation", "jsd_0.1", "jsd_0.5", "jsd_0.9",
        "skew_forward_kl_0.1", "skew_reverse_kl_0.1", "power_3",
    ]  # fmt: skip
    want = float(np.sum(np.abs(np.log(Q) - np.log(P)) ** 3))
    assert float(reported["power_3"](STUDENT, TEACHER)) == pytest.approx(want, rel=1e-5)
