"""A teacher known by its K best ids: equal to the whole one at K = V, by definition below."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gkd.distill import divergences, losses, step_functions, train_step
from gkd.distill.truncated_teacher import (
    check_top_k,
    make_offline_teacher_logits_fn,
    truncation_bias,
)
from gkd.distill.types import TopK
from tests.distill import references
from tests.distill.small_step import (
    STUDENT,
    TEACHER,
    TEACHER_PARAMS,
    VALID,
    VOCAB,
    close,
    make_batch,
    one_device,
    start,
)

ALL = {
    **divergences.reported_divergences(),
    "skew_forward_kl": divergences.skew_forward_kl,
    "skew_reverse_kl": divergences.skew_reverse_kl,
}
STUDENT_LOGITS = jnp.asarray(references.normal(1, 2, 3, 7))
TEACHER_LOGITS = jnp.asarray(references.normal(2, 2, 3, 7))
USABLE = np.array([False, True, True, True, True, True, False])


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_all_ids_are_the_whole_teacher(tail):
    for name, divergence in ALL.items():
        got, whole = truncation_bias(STUDENT_LOGITS, TEACHER_LOGITS, 7, tail, divergence)
        want = references.divergence(name, STUDENT_LOGITS, TEACHER_LOGITS)
        np.testing.assert_allclose(got, want, atol=3e-6, err_msg=name)
        np.testing.assert_allclose(whole, want, atol=3e-6, err_msg=name)


def truncated(tail, k):
    """(P, Q) over the outcomes that are left, in float64."""
    p = references.probabilities(TEACHER_LOGITS, USABLE)
    q = references.probabilities(STUDENT_LOGITS, USABLE)
    order = np.argsort(-p, axis=-1)
    if tail == "renormalise":
        kept = np.zeros_like(p)
        np.put_along_axis(kept, order[..., :k], 1.0, axis=-1)
        return p * kept / (p * kept).sum(axis=-1, keepdims=True), q
    p, q = (np.take_along_axis(x, order, axis=-1) for x in (p, q))
    return tuple(np.append(x[..., :k], x[..., k:].sum(-1, keepdims=True), -1) for x in (p, q))


@pytest.mark.parametrize(
    "tail, names",
    [("bucket", list(ALL)), ("renormalise", ["forward_kl", "jsd_0.5", "total_variation"])],
)
def test_two_ids_by_definition(tail, names):
    for name in names:
        got, _ = truncation_bias(
            STUDENT_LOGITS, TEACHER_LOGITS, 2, tail, ALL[name], jnp.asarray(USABLE)
        )
        want = references.from_probabilities(name, *truncated(tail, 2))
        np.testing.assert_allclose(got, want, atol=3e-6, err_msg=name)


def test_a_bucket_never_exceeds_the_whole_divergence():
    """Merging outcomes loses information: the data-processing inequality."""
    for name in ("forward_kl", "reverse_kl", "total_variation", "jsd_0.5"):
        got, whole = truncation_bias(STUDENT_LOGITS, TEACHER_LOGITS, 3, "bucket", ALL[name])
        assert np.all(got <= whole + 1e-6), name


def step_with(tail, k):
    teacher = jax.jit(step_functions.make_teacher_logits_fn(TEACHER))
    batch = make_batch()
    hidden = teacher(TEACHER_PARAMS, batch, train_step.rollout_from_targets(batch))
    logits = np.asarray(hidden.hidden @ hidden.head.kernel, np.float64)
    log_p = np.log(references.probabilities(logits, np.asarray(VALID)) + 1e-300)
    ids = np.argsort(-log_p, axis=-1)[..., :k].astype(np.int32)
    values = np.take_along_axis(log_p, ids, axis=-1).astype(np.float32)
    parts = train_step.make_train_step(
        STUDENT,
        optax.sgd(1.0),
        divergence_loss_fn=losses.make_divergence_loss(divergences.forward_kl, valid=VALID),
        teacher_logits_fn=make_offline_teacher_logits_fn(tail),
    )
    batch = batch.replace(teacher_top_k=TopK(jnp.asarray(ids), jnp.asarray(values)))
    return jax.jit(parts.step)(start(), None, batch)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_an_offline_teacher_of_all_ids_is_supervised_distillation(tail):
    state, _ = step_with(tail, VOCAB - 1)  # pad is never an outcome
    close(state.params, one_device(0.0)[0].params)


def test_what_has_no_answer_is_refused():
    def gins_wrapper(function):
        return functools.wraps(function)(lambda *args: function(*args))

    with pytest.raises(ValueError, match="TOP_K_TAIL is 'drop'"):
        check_top_k(divergences.forward_kl, "drop", 1.0)
    with pytest.raises(ValueError, match="reverse_kl is infinite"):
        check_top_k(gins_wrapper(divergences.reverse_kl), "renormalise", 1.0)
    with pytest.raises(ValueError, match="its tail bucket was filled at 1"):
        check_top_k(divergences.forward_kl, "bucket", (1.0, 2.0))
    check_top_k(divergences.reverse_kl, "bucket", (2.0, 1.0))
