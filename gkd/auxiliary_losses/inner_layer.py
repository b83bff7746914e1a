"""Divergence of an inner decoder layer from the last, signed by the rows' advantages (OISD)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gkd.distill.divergences import generalized_jsd
from gkd.distill.fused import fused_token_loss
from gkd.distill.losses import DivergenceLoss, Loss, token_coefficients
from gkd.distill.types import Rollout
from gkd.errors import InvalidValue
from gkd.models.interface import ProjectedLogits

_LEAST = 1e-30  # probability of a key that is masked: the same in both layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerLayerLoss:
    """Settings of the loss of an inner layer of the student's decoder.

    Attributes:
      layer: number of decoder layers up to and including the inner one: 1 is the first, and the
        last cannot be chosen.
      weight: factor of the signed divergence between the layers' distributions, 0 or more.
      attention_weight: factor of the divergence between the layers' attention, 0 or more.
      beta: β of both generalized JSDs, the last layer's share of the mixture, in (0, 1).

    Raises:
      InvalidValue: a setting out of its range.

    Source: arXiv 2605.29089 (OISD); β and the pooling of the heads are ours.
    """

    layer: int
    weight: float | int = 1.0
    attention_weight: float | int = 0.1
    beta: float | int = 0.5

    def __post_init__(self):
        if self.layer < 1:
            raise InvalidValue(f"InnerLayerLoss.layer is {self.layer}: use 1, the first, or more")
        for name in ("weight", "attention_weight"):
            if getattr(self, name) < 0:
                raise InvalidValue(f"InnerLayerLoss.{name} is {getattr(self, name)}: use 0 or more")
        if not 0 < self.beta < 1:
            raise InvalidValue(f"InnerLayerLoss.beta is {self.beta}: use more than 0, less than 1")


def inner_layer_loss(
    student: ProjectedLogits,
    rollout: Rollout,
    *,
    settings: InnerLayerLoss,
    valid: Bool[Array, " vocabulary"] | None = None,
    block_size: int | None = None,
    data_shards: int = 1,
) -> Loss:
    """The signed divergence of an inner layer from the last, and that of its attention.

    A row with advantage A has the loss A · JSD of every token, between the next-token distributions
    of the inner layer, read through the decoder's final norm and the head, and of the last: below 0
    it drives the two apart. Attention, the mean over the heads, is compared at every query position
    over its keys, whatever the advantage. Both are means over a row's tokens, then over rows.

    The last layer's distribution and attention are constants. The gradient flows through the inner
    layer's states, and through the final norm and the head as the inner layer is read with them.

    Args:
      student: logits of the rollout's tokens with an inner layer, N rows of T.
      rollout: tokens, weights and advantages.
      settings: weights and β.
      valid: bool [V], false for ids that carry no probability.
      block_size, data_shards: see `fused_token_loss`.

    Returns:
      Sum, weight, and the metrics "inner_divergence", "signed_inner_divergence" (times the
      advantage) and "attention_divergence" as (sum, weight) pairs.

    Source: arXiv 2605.29089 (OISD).
    """
    coefficients, weight = token_coefficients(rollout, "sequence")
    total, metrics = jnp.float32(0), {}
    if settings.weight:
        metrics = _layer_terms(
            student, rollout, settings.beta, valid, coefficients, block_size, data_shards
        )
        total += settings.weight * metrics["signed_inner_divergence"]
    if settings.attention_weight:
        inner = student.inner
        divergence = attention_divergence(
            inner.attention, inner.last_attention, coefficients != 0, settings.beta
        )
        metrics["attention_divergence"] = jnp.sum(coefficients * divergence)
        total += settings.attention_weight * metrics["attention_divergence"]
    return total, weight, {name: (value, weight) for name, value in metrics.items()}


def _layer_terms(student, rollout, beta, valid, coefficients, block_size, data_shards):
    """Sums of the divergence of the two layers' distributions, with and without the advantage."""
    inner = student.replace(hidden=student.inner.hidden, inner=None)
    last = jax.lax.stop_gradient(student.replace(inner=None))
    advantages = jnp.broadcast_to(rollout.advantages[:, None], coefficients.shape)

    def divergence(inner_logits, last_logits, advantages):
        return generalized_jsd(inner_logits, last_logits, beta=beta, valid=valid)

    def signed(inner_logits, last_logits, advantages):
        return advantages * divergence(inner_logits, last_logits, advantages)

    def metric(*arguments):
        return {"inner_divergence": divergence(*arguments)}

    total, _, values = fused_token_loss(
        signed, inner, last, advantages, coefficients,
        token_metrics=metric, block_size=block_size, data_shards=data_shards,
    )  # fmt: skip
    return {
        "inner_divergence": jnp.sum(coefficients * values["inner_divergence"]),
        "signed_inner_divergence": total,
    }


def attention_divergence(
    attention: Float[Array, "rows length length"],
    last_attention: Float[Array, "rows length length"],
    keep: Bool[Array, "rows length"],
    beta: float | int,
) -> Float[Array, "rows length"]:
    """Computes the generalized JSD of two layers' attention at every query position.

    Args:
      attention: probabilities over the keys, (query, key), of the inner layer.
      last_attention: likewise of the last layer; no gradient flows into it.
      keep: false for queries that do not count: they give 0, whatever they hold.
      beta: the last layer's share of the mixture.

    Returns:
      float32 [N, T], in nats.

    The second query attends to two keys in the inner layer, to the first alone in the last:

    >>> inner, last = jnp.array([[[1.0, 0.0], [0.5, 0.5]]]), jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    >>> divergence = attention_divergence(inner, last, jnp.ones((1, 2), bool), 0.5)
    >>> [f"{value:.4f}" for value in divergence[0]]
    ['0.0000', '0.2158']
    """

    def logits(probabilities):
        return jnp.log(jnp.maximum(jnp.where(keep[..., None], probabilities, 1.0), _LEAST))

    return generalized_jsd(logits(attention), logits(last_attention), beta=beta)


def with_inner_layer_loss(
    loss_fn: DivergenceLoss,
    settings: InnerLayerLoss,
    valid: Bool[Array, " vocabulary"] | None = None,
    data_shards: int = 1,
) -> Callable:
    """Adds the loss of an inner layer to a loss whose weight is that of sequences.

    Args:
      loss_fn: (student, teacher, rollout) -> (sum, weight, metrics), such as
        `reward_and_divergence_loss`.
      settings: layer, weights and β.
      valid, data_shards: see `inner_layer_loss`.

    Returns:
      A function like `loss_fn`.
    """

    def loss(student, teacher, rollout):
        total, weight, metrics = loss_fn(student, teacher, rollout)
        inner, _, more = inner_layer_loss(
            student, rollout, settings=settings, valid=valid, data_shards=data_shards
        )
        return total + inner, weight, {**metrics, **more}

    return loss
