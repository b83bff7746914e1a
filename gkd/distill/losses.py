"""The third pure function: (student logits, teacher logits, rollout) -> (sum, weight, metrics).

Sums and weights stay apart until the caller divides once, globally: sum / max(weight, tiny). Then
microbatches, devices and hosts change neither the loss nor its gradient, and an empty rollout
gives 0. Weights depend on the rollout only, so the denominator is known before any update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gkd.distill.divergence_records import DivergenceRecord, record_of
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import (
    Logits,
    TeacherLogits,
    Temperature,
    TopKLogits,
    entropy,
    token_log_prob,
)
from gkd.distill.truncated_teacher import restrict_to_top_k
from gkd.distill.types import Rollout
from gkd.errors import InvalidValue

Pair = tuple[Float[Array, ""], Float[Array, ""]]
Loss = tuple[Float[Array, ""], Float[Array, ""], dict[str, Pair]]
Divergence = Callable[..., Float[Array, "..."]] | DivergenceRecord
DivergenceLoss = Callable[[Logits, TeacherLogits | None, Rollout], Loss]


def token_coefficients(
    rollout: Rollout, normalisation: str = "sequence"
) -> tuple[Float[Array, "rows length"], Float[Array, ""]]:
    """Computes the factor of each token's loss and the denominator of their sum.

    Args:
      rollout: N rows of T tokens with their weights.
      normalisation: "sequence" averages each row's tokens first and then the rows (weighted by
        their examples); "token" averages over all tokens. Rows without tokens count in neither.

    Returns:
      Coefficients float32 [N, T], and their sum.

    Raises:
      ValueError: another normalisation.

    Source: Agarwal et al. 2024 (arXiv 2306.13649), equation 2, for "sequence".

    A row with the loss {4} and one with {1, 1, 1}:

    >>> weights = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> rollout = Rollout(jnp.ones((2, 3), int), weights, 0 * weights, jnp.ones(2, bool))
    >>> losses = jnp.array([[4.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    >>> for normalisation in ("sequence", "token"):
    ...     coefficients, weight = token_coefficients(rollout, normalisation)
    ...     print(f"{normalisation} {jnp.sum(coefficients * losses) / weight:.2f}")
    sequence 2.50
    token 1.75
    """
    weights = rollout.weights.astype(jnp.float32)
    if normalisation == "token":
        return weights, jnp.sum(weights)
    if normalisation != "sequence":
        raise InvalidValue(f"normalisation is {normalisation!r}: choose 'sequence' or 'token'")
    tokens = jnp.sum(weights != 0, axis=1, keepdims=True)
    coefficients = weights / jnp.maximum(tokens, 1)
    return coefficients, jnp.sum(coefficients)


def divergence_loss(
    student: Logits,
    teacher: TeacherLogits | None,
    rollout: Rollout,
    *,
    divergence: Divergence,
    normalisation: str = "sequence",
    temperature: Temperature = 1.0,
    valid: Bool[Array, " vocabulary"] | None = None,
    with_entropies: bool = False,
    block_size: int | None = None,
    data_shards: int = 1,
) -> Loss:
    """The divergence between teacher and student, summed over a rollout's tokens.

    Args:
      student: logits of the rollout's tokens, N rows of T.
      teacher: the teacher's; no gradient flows into them.
      rollout: tokens and weights.
      divergence: a function of gkd.distill.divergences or its record, with its parameters bound.
      normalisation: "sequence" (the paper's) or "token".
      temperature: divides both models' logits, or a pair (student's, teacher's).
      valid: bool [V], false for ids that carry no probability.
      with_entropies: also report both models' entropies, at a cost near that of the divergence.
      block_size: see `fused_token_loss`.
      data_shards: see `fused_token_loss`.

    Returns:
      Sum, weight, and metrics by name as (sum, weight) pairs of float32 scalars.

    Source: Agarwal et al. 2024 (arXiv 2306.13649), equations 2 and 4.
    """
    token_loss = divergence_of_tokens(divergence, temperature, valid)

    def entropies(student_logits, teacher_logits, targets):
        named = {"student_entropy": entropy(student_logits, valid=valid)}
        if not isinstance(teacher_logits, TopKLogits):
            named["teacher_entropy"] = entropy(teacher_logits, valid=valid)
        return named

    return _summed(
        token_loss, student, teacher, rollout, normalisation, "divergence",
        token_metrics=entropies if with_entropies else None,
        block_size=block_size, data_shards=data_shards,
    )  # fmt: skip


def reward_and_divergence_loss(
    student: Logits,
    teacher: TeacherLogits | None,
    rollout: Rollout,
    *,
    alpha: float,
    divergence: Divergence | None,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " vocabulary"] | None = None,
    policy_loss: str = "reinforce",
    ratio_clip: float | int | None = None,
    block_size: int | None = None,
    data_shards: int = 1,
) -> Loss:
    """RL and distillation in one pass: α · D + (1−α) · policy loss, a mean over rows.

    The policy loss of a row with advantage A is −A · Σ_n log Q(y_n) for "reinforce", and for "grpo"
    the mean over its tokens of −min(r_n · A, clip(r_n, 1−ε, 1+ε) · A) with the importance ratio
    r_n = Q(y_n) / Q_old(y_n). The divergence keeps equation 2's average over a row's tokens.

    Args:
      student: logits of the rollout's tokens, N rows of T.
      teacher: the teacher's; None where α is 0.
      rollout: tokens, weights and advantages, which are 0 on data rows; Q_old is its log_probs'.
      alpha: in [0, 1]; 0 is the policy loss alone.
      policy_loss: "reinforce" or "grpo".
      ratio_clip: ε > 0 of "grpo"; None does not clip.
      divergence, temperature, valid, block_size, data_shards: as in `divergence_loss`; log Q is the
        sampler's, at temperature 1 over the valid ids.

    Returns:
      As `divergence_loss`, with the metrics "divergence", "policy_gradient", "reward" (over the
      student's own rows) and, where ratios are clipped, "clipped_ratios" (the share of tokens whose
      gradient that removes).

    Source: Agarwal et al. 2024 (arXiv 2306.13649), equation 5; Williams 1992; Shao et al. 2024
    (arXiv 2402.03300), equation 3; Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    coefficients, weight = token_coefficients(rollout, "sequence")
    scale = jnp.broadcast_to(rollout.advantages[:, None], coefficients.shape)
    if policy_loss == "reinforce":
        # A coefficient is weight / tokens: tokens · A makes the row's average a sum.
        scale = scale * jnp.sum(rollout.weights != 0, axis=1, keepdims=True)
    token_divergence = divergence and divergence_of_tokens(divergence, temperature, valid)

    def policy_of(student_logits, targets):
        ids, scale, old = targets
        log_prob = token_log_prob(student_logits, ids, valid)
        if policy_loss == "reinforce":
            return -scale * log_prob, None
        return _clipped_policy_loss(jnp.exp(log_prob - old), scale, ratio_clip)

    def token_loss(student_logits, teacher_logits, targets):
        policy, _ = policy_of(student_logits, targets)
        if alpha == 0:
            return policy
        distance = token_divergence(student_logits, teacher_logits, targets[0])
        return alpha * distance + (1 - alpha) * policy

    def terms(student_logits, teacher_logits, targets):
        policy, clipped = policy_of(student_logits, targets)
        named = {"policy_gradient": policy}
        if clipped is not None:
            named["clipped_ratios"] = clipped
        if alpha:  # by itself: beside a large advantage nothing of it is left in a difference
            named["divergence"] = token_divergence(student_logits, teacher_logits, targets[0])
        return named

    targets = (rollout.target_tokens, scale, rollout.log_probs)
    total, _, metrics = fused_token_loss(
        token_loss, student, teacher if alpha else None, targets,
        coefficients, token_metrics=terms, block_size=block_size, data_shards=data_shards,
    )  # fmt: skip
    named = {name: (jnp.sum(coefficients * value), weight) for name, value in metrics.items()}
    own = jnp.sum(coefficients, axis=1) * rollout.on_policy
    named["reward"] = (jnp.sum(own * rollout.rewards), jnp.sum(own))
    return total, weight, named


def _clipped_policy_loss(ratio, advantage, clip):
    """GRPO's loss of tokens, and where the clip removes their gradient (float32, or None)."""
    if clip is None:
        return -ratio * advantage, None
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip) * advantage
    removed = bounded < ratio * advantage
    return -jnp.where(removed, bounded, ratio * advantage), removed.astype(jnp.float32)


def divergence_of_tokens(
    divergence: Divergence,
    temperature: Temperature,
    valid: Bool[Array, " vocabulary"] | None,
) -> Callable[..., Float[Array, "rows size"]]:
    """A divergence as `fused_token_loss` calls it: (student, teacher, target ids) of a block."""
    record = record_of(divergence)

    def token_loss(student_logits, teacher, targets):
        scale, mask = temperature, valid
        if isinstance(teacher, TopKLogits):
            if record.needs_sampled_token:
                raise InvalidValue("a sampled token may lie outside of the teacher's top-k ids")
            student_logits, teacher, scale, mask = restrict_to_top_k(
                student_logits, teacher, temperature, valid
            )
        return record(student_logits, teacher, targets, temperature=scale, valid=mask)

    return token_loss


def cross_entropy_loss(
    student: Logits,
    teacher: None,
    rollout: Rollout,
    *,
    normalisation: str = "sequence",
    block_size: int | None = None,
    data_shards: int = 1,
) -> Loss:
    """Cross-entropy of the rollout's own tokens under the student's raw logits: SFT and SeqKD.

    Args:
      student: logits of the rollout's tokens, N rows of T.
      teacher: None; there is no teacher, the argument keeps the third function's signature.
      rollout: tokens and weights.
      normalisation: "sequence" or "token".
      block_size: see `fused_token_loss`.
      data_shards: see `fused_token_loss`.

    Returns:
      Sum, weight, and the metrics "cross_entropy" and "token_accuracy" as (sum, weight) pairs.
    """

    def token_loss(student_logits, teacher_logits, targets):
        return -token_log_prob(student_logits, targets)

    def accuracy(student_logits, teacher_logits, targets):
        # The target is right when nothing scores higher: a maximum costs less than an argmax.
        is_target = jnp.arange(student_logits.shape[-1]) == targets[..., None]
        target_logits = jnp.sum(jnp.where(is_target, student_logits, 0.0), axis=-1)
        right = target_logits >= jnp.max(student_logits, axis=-1)
        return {"token_accuracy": right.astype(jnp.float32)}

    return _summed(
        token_loss, student, None, rollout, normalisation, "cross_entropy",
        token_metrics=accuracy, block_size=block_size, data_shards=data_shards,
    )  # fmt: skip


def make_divergence_loss(
    divergence: Divergence,
    normalisation: str = "sequence",
    temperature: Temperature = 1.0,
    valid: Bool[Array, " vocabulary"] | None = None,
    with_entropies: bool = False,
    block_size: int | None = None,
    data_shards: int = 1,
) -> DivergenceLoss:
    """A `divergence_loss` of (student, teacher, rollout) with everything else bound."""
    return functools.partial(
        divergence_loss,
        divergence=divergence,
        normalisation=normalisation,
        temperature=temperature,
        valid=valid,
        with_entropies=with_entropies,
        block_size=block_size,
        data_shards=data_shards,
    )


def make_cross_entropy_loss(
    normalisation: str = "sequence", block_size: int | None = None, data_shards: int = 1
) -> DivergenceLoss:
    """A `cross_entropy_loss` of (student, None, rollout) with everything else bound."""
    return functools.partial(
        cross_entropy_loss,
        normalisation=normalisation,
        block_size=block_size,
        data_shards=data_shards,
    )


def _summed(token_loss, student, teacher, rollout, normalisation, name, **options):
    """Runs the fused loss over a rollout and pairs every sum with its weight."""
    coefficients, weight = token_coefficients(rollout, normalisation)
    total, _, token_metrics = fused_token_loss(
        token_loss, student, teacher, rollout.target_tokens, coefficients, **options
    )
    metrics = {name: (total, weight)}
    for metric, values in token_metrics.items():
        metrics[metric] = (jnp.sum(coefficients * values), weight)
    return total, weight, metrics
