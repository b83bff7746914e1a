"""Divergences between the teacher's and the student's next-token distributions, per token.

P is the teacher, Q the student. Every function takes logits of any float dtype, computes in
float32 and sends no gradient to the teacher. Each divergence is written once as its value and its
closed-form gradient: that needs fewer passes over the vocabulary than differentiating the value,
never subtracts infinities, and is exactly zero where the two distributions are equal.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gkd.distill.divergence_records import (
    DivergenceRecord,
    divergence,
    registered_divergences,
)
from gkd.distill.logits import (
    Temperature,
    check_same_vocabulary,
    log_softmax,
    temperature_pair,
    token_log_prob,
)
from gkd.errors import InvalidValue


@divergence(options=("clip",), reported={"forward_kl": {}})
def forward_kl(
    student_logits: Float[Array, "... student_vocabulary"],
    teacher_logits: Float[Array, "... teacher_vocabulary"],
    *,
    clip: float | None = None,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Computes the forward KL divergence KL(P‖Q), which is large where the student misses a mode.

    Args:
      student_logits: [..., V].
      teacher_logits: [..., V].
      clip: τ > 0, a bound on each id's term P·log(P/Q) before the sum, so that no single id (of
        style, say) rules the loss; an id above it gets no gradient of its own, and the sum may be
        negative. None does not clip.
      temperature: divides both models' logits, or a pair (student's, teacher's). The loss is not
        multiplied by its square.
      valid: bool [V], false for ids without probability in either distribution; None is all true.

    Returns:
      The divergence in nats, float32 [...].

    Raises:
      ValueError: the two shapes (or the mask's) differ, or clip is not above 0.

    Source: Agarwal et al. 2024 (arXiv 2306.13649), section 2; Hinton et al. 2015; for clip arXiv
    2601.18734 (OPSD).

    >>> teacher, student = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    >>> print(f"{forward_kl(student, teacher):.6f}")
    0.583815
    >>> print(f"{forward_kl(student, teacher, clip=0.05):.6f}")  # 0.05 − 0.183258 − 0.109861
    -0.243119
    """
    _check_clip(clip)

    def value_and_gradient(log_p, log_q):
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        terms, below = _clipped(p * (log_p - log_q), clip)
        kept = p * below
        return _sum(terms), q * _sum(kept)[..., None] - kept if clip else q - p

    return _divergence(
        value_and_gradient, student_logits, teacher_logits, temperature, valid, signed=bool(clip)
    )


@divergence(finite_on_truncation=False, reported={"reverse_kl": {}})
def reverse_kl(
    student_logits: Float[Array, "... student_vocabulary"],
    teacher_logits: Float[Array, "... teacher_vocabulary"],
    *,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Computes the reverse KL divergence KL(Q‖P), which is large where the teacher is improbable.

    Args, Returns, Raises: as in `forward_kl`.

    Source: Agarwal et al. 2024 (arXiv 2306.13649), section 2; Gu et al. 2023 (MiniLLM).

    >>> teacher, student = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    >>> print(f"{reverse_kl(student, teacher):.6f}")
    0.537176
    """

    def value_and_gradient(log_p, log_q):
        q, log_ratio = jnp.exp(log_q), log_q - log_p
        value = _sum(q * log_ratio)
        return value, q * (log_ratio - value[..., None])

    return _divergence(value_and_gradient, student_logits, teacher_logits, temperature, valid)


@divergence(reported={"total_variation": {}})
def total_variation(
    student_logits: Float[Array, "... student_vocabulary"],
    teacher_logits: Float[Array, "... teacher_vocabulary"],
    *,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Computes the total variation distance ½ Σ|P−Q|, between 0 and 1.

    Args, Returns, Raises: as in `forward_kl`.

    Source: Wen et al. 2023 (f-distill).

    >>> teacher, student = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    >>> print(f"{total_variation(student, teacher):.6f}")
    0.500000
    """

    def value_and_gradient(log_p, log_q):
        q = jnp.exp(log_q)
        difference = q - jnp.exp(log_p)
        half_sign = 0.5 * jnp.sign(difference)
        return 0.5 * _sum(jnp.abs(difference)), _through_softmax(q, half_sign)

    return _divergence(value_and_gradient, student_logits, teacher_logits, temperature, valid)


@divergence(
    parameters=("beta",),
    options=("rescale", "clip"),
    reported={f"jsd_{beta}": {"beta": beta} for beta in (0.1, 0.5, 0.9)},
)
def generalized_jsd(
    student_logits: Float[Array, "... student_vocabulary"],
    teacher_logits: Float[Array, "... teacher_vocabulary"],
    *,
    beta: float,
    rescale: bool = False,
    clip: float | None = None,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Computes the generalized JSD β·KL(P‖M) + (1−β)·KL(Q‖M), where M = βP + (1−β)Q.

    Args:
      student_logits: [..., V].
      teacher_logits: [..., V].
      beta: the teacher's share of the mixture, strictly between 0 and 1. Small values behave like
        forward KL (times β), values near 1 like reverse KL (times 1−β).
      rescale: divide by β(1−β), so that β tunes the shape and not the step size; then the limits
        at 0 and 1 are forward and reverse KL themselves.
      clip: as in `forward_kl`, a bound on each id's term β·P·log(P/M) + (1−β)·Q·log(Q/M).
      temperature: divides both models' logits, or a pair (student's, teacher's).
      valid: bool [V], false for ids without probability in either distribution; None is all true.

    Returns:
      The divergence in nats, float32 [...], at most H(β) unless rescaled.

    Raises:
      ValueError: beta is not inside (0, 1), clip is not above 0, or shapes differ.

    Source: Agarwal et al. 2024 (arXiv 2306.13649), equation 1.

    >>> teacher, student = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    >>> print(f"{generalized_jsd(student, teacher, beta=0.9):.6f}")
    0.047864
    """
    _check_mixture("generalized_jsd", "beta", beta, at_zero="forward_kl", at_one="reverse_kl")
    _check_clip(clip)
    scale = 1.0 / (beta * (1.0 - beta)) if rescale else 1.0

    def value_and_gradient(log_p, log_q):
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        mixture_over_p, mixture_over_q = _log_mixture_ratios(log_p, log_q, beta)
        if clip:
            terms = -beta * p * mixture_over_p - (1.0 - beta) * q * mixture_over_q
            terms, below = _clipped(scale * terms, clip)
            return _sum(terms), _through_softmax(q, -scale * (1.0 - beta) * mixture_over_q * below)
        teacher_term, student_term = -_sum(p * mixture_over_p), -_sum(q * mixture_over_q)
        value = beta * teacher_term + (1.0 - beta) * student_term
        gradient = -(1.0 - beta) * q * (mixture_over_q + student_term[..., None])
        return scale * value, scale * gradient

    return _divergence(
        value_and_gradient, student_logits, teacher_logits, temperature, valid, signed=bool(clip)
    )


@divergence(options=("alpha",), reported={"skew_forward_kl_0.1": {"alpha": 0.1}})
def skew_forward_kl(
    student_logits: Float[Array, "... student_vocabulary"],
    teacher_logits: Float[Array, "... teacher_vocabulary"],
    *,
    alpha: float = 0.1,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Computes the skew forward KL divergence KL(P‖αP + (1−α)Q), at most −log α.

    Args:
      student_logits, teacher_logits, temperature, valid: as in `forward_kl`.
      alpha: the teacher's share of the second argument, strictly between 0 and 1.

    Returns:
      The divergence in nats, float32 [...].

    Raises:
      ValueError: alpha is not inside (0, 1), or shapes differ.

    Source: Ko et al. 2024 (DistiLLM, arXiv 2402.03898), equation 3.
    """
    _check_mixture("skew_forward_kl", "alpha", alpha, at_zero="forward_kl")

    def value_and_gradient(log_p, log_q):
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        mixture_over_p, _ = _log_mixture_ratios(log_p, log_q, alpha)
        # ∂/∂Q is −(1−α)·P/M; a constant more or less does not pass the softmax.
        slope = -(1.0 - alpha) * jnp.expm1(-mixture_over_p)
        return -_sum(p * mixture_over_p), _through_softmax(q, slope)

    return _divergence(value_and_gradient, student_logits, teacher_logits, temperature, valid)


@divergence(options=("alpha",), reported={"skew_reverse_kl_0.1": {"alpha": 0.1}})
def skew_reverse_kl(
    student_logits: Float[Array, "... student_vocabulary"],
    teacher_logits: Float[Array, "... teacher_vocabulary"],
    *,
    alpha: float = 0.1,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Computes the skew reverse KL divergence KL(Q‖(1−α)P + αQ), at most −log α.

    Args:
      student_logits, teacher_logits, temperature, valid: as in `forward_kl`.
      alpha: the student's share of the second argument, strictly between 0 and 1.

    Returns:
      The divergence in nats, float32 [...].

    Raises:
      ValueError: alpha is not inside (0, 1), or shapes differ.

    Source: Ko et al. 2024 (DistiLLM, arXiv 2402.03898), equation 3.
    """
    _check_mixture("skew_reverse_kl", "alpha", alpha, at_zero="reverse_kl")

    def value_and_gradient(log_p, log_q):
        q = jnp.exp(log_q)
        _, mixture_over_q = _log_mixture_ratios(log_p, log_q, 1.0 - alpha)
        # ∂/∂Q is log(Q/M) + 1 − α·Q/M, again up to a constant.
        slope = -mixture_over_q - alpha * jnp.expm1(-mixture_over_q)
        return -_sum(q * mixture_over_q), _through_softmax(q, slope)

    return _divergence(value_and_gradient, student_logits, teacher_logits, temperature, valid)


@divergence(needs_sampled_token=True, on_policy_only=True, finite_on_truncation=False)
def sampled_token_reverse_kl(
    student_logits: Float[Array, "... student_vocabulary"],
    teacher_logits: Float[Array, "... teacher_vocabulary"],
    targets: Int[Array, "..."],
    *,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Estimates KL(Q‖P) from the token that Q sampled, as a policy gradient with A = log P/Q.

    Args:
      student_logits, teacher_logits, temperature, valid: as in `forward_kl`.
      targets: int32 [...], the ids that the student sampled; on other ids it estimates no
        divergence.

    Returns:
      log Q − log P of the target, float32 [...], of either sign; its gradient is −A · ∇ log Q.

    Source: arXiv 2604.17535 (OPSDL), the sampled-token form.

    The token 1 has log 0.5 − log 0.2:

    >>> teacher, student = jnp.log(jnp.array([0.7, 0.2, 0.1])), jnp.log(jnp.array([0.2, 0.5, 0.3]))
    >>> print(f"{sampled_token_reverse_kl(student, teacher, jnp.array(1)):.6f}")
    0.916291
    """
    check_same_vocabulary(student_logits.shape[-1], teacher_logits.shape[-1])
    pair = temperature_pair(temperature)
    log_q = token_log_prob(student_logits.astype(jnp.float32) / pair.student, targets, valid)
    log_p = token_log_prob(teacher_logits.astype(jnp.float32) / pair.teacher, targets, valid)
    against = jax.lax.stop_gradient(log_q - log_p)  # −A
    return against + against * (log_q - jax.lax.stop_gradient(log_q))


def reported_divergences() -> dict[str, DivergenceRecord]:
    """Lists the divergences that evaluation reports, by metric name, with their parameters bound.

    >>> list(reported_divergences())[:3]
    ['forward_kl', 'reverse_kl', 'total_variation']
    """
    return {
        metric: record.bind(**values)
        for record in registered_divergences()
        for metric, values in record.reported.items()
    }


def _divergence(
    value_and_gradient, student_logits, teacher_logits, temperature, valid, signed=False
):
    """Applies a (log P, log Q) -> (value, gradient for the student's logits) function to logits."""
    check_same_vocabulary(student_logits.shape[-1], teacher_logits.shape[-1])
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student logits have shape {student_logits.shape}, teacher logits "
            f"{teacher_logits.shape}: both models must score the same tokens"
        )
    if valid is not None and valid.shape != student_logits.shape[-1:]:
        raise ValueError(
            f"the valid mask has {valid.shape[0]} ids, the logits {student_logits.shape[-1]}: "
            "pass one entry for each id"
        )
    pair = temperature_pair(temperature)
    student = student_logits.astype(jnp.float32) / pair.student
    teacher = jax.lax.stop_gradient(teacher_logits.astype(jnp.float32) / pair.teacher)
    # No divergence is negative: what rounding leaves below zero is zero.
    return _value(value_and_gradient, -math.inf if signed else 0.0, student, teacher, valid)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value(value_and_gradient, least, student, teacher, valid):
    value, _ = value_and_gradient(log_softmax(teacher, valid), log_softmax(student, valid))
    return jnp.maximum(value, least)


@_value.defjvp
def _value_jvp(value_and_gradient, least, primals, tangents):
    student, teacher, valid = primals
    log_p, log_q = log_softmax(teacher, valid), log_softmax(student, valid)
    value, gradient = value_and_gradient(log_p, log_q)
    return jnp.maximum(value, least), _sum(gradient * tangents[0])


def _clipped(terms, clip):
    """Terms of at most `clip`, and 1.0 where they were below it; None changes nothing."""
    return (terms, 1.0) if clip is None else (jnp.minimum(terms, clip), terms < clip)


def _check_clip(clip):
    if clip is not None and not 0 < clip < math.inf:
        raise InvalidValue(f"clip is {clip}: bound each id's term by a number above 0, or None")


def _log_mixture_ratios(log_p, log_q, teacher_share):
    """log(M/P) and log(M/Q) for M = share·P + (1−share)·Q, exactly zero where P = Q."""
    difference = log_q - log_p
    other_share = jnp.where(difference < 0, 1.0 - teacher_share, teacher_share)
    # log of M over the larger of P and Q: between log(min(share, 1−share)) and 0.
    mixture_over_larger = jnp.maximum(
        jnp.log1p(other_share * jnp.expm1(-jnp.abs(difference))),
        math.log(min(teacher_share, 1.0 - teacher_share)),
    )
    return (
        mixture_over_larger + jnp.maximum(difference, 0.0),
        mixture_over_larger - jnp.minimum(difference, 0.0),
    )


def _through_softmax(q, slope):
    """Turns ∂D/∂Q into ∂D/∂logits: q·(slope − E_q[slope])."""
    return q * (slope - _sum(q * slope)[..., None])


def _sum(values):
    return jnp.sum(values, axis=-1)


def _check_mixture(function, argument, value, *, at_zero, at_one=None):
    if 0.0 < value < 1.0:
        return
    ends = f"for {argument}=0 use {at_zero}"
    if at_one:
        ends += f", for {argument}=1 use {at_one}"
    raise InvalidValue(f"{function} needs 0 < {argument} < 1, got {value}: {ends}")
