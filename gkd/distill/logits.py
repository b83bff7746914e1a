"""Next-token logits in the form a model leaves them: dense, or not yet multiplied out."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gkd.models import interface


@flax.struct.dataclass
class DenseLogits:
    """Logits that exist: `values`, any float dtype [N, T, V]."""

    values: Any


@flax.struct.dataclass
class ProjectedLogits:
    """Logits as the product they are, never multiplied out at full length.

    Attributes:
      hidden: [N, T, E] last hidden states, in the model's compute dtype.
      head: the projection to [N, T, V], its kernel used in place.
    """

    hidden: Any
    head: interface.Head


@flax.struct.dataclass
class TopKLogits:
    """A teacher's K best ids at every token, see gkd.distill.truncated_teacher.

    Attributes:
      ids: int32 [N, T, K].
      log_probs: float32 [N, T, K].
      tail: what becomes of the other ids' probability, 'bucket' or 'renormalise'.
    """

    ids: Any
    log_probs: Any
    tail: str = flax.struct.field(pytree_node=False, default="bucket")


Logits = DenseLogits | ProjectedLogits
TeacherLogits = DenseLogits | ProjectedLogits | TopKLogits


def logits_shape(logits: Logits) -> tuple[int, int, int]:
    """The shape (N, T, V) that the logits have or would have."""
    if isinstance(logits, DenseLogits):
        return logits.values.shape
    head = logits.head
    return (*logits.hidden.shape[:2], head.kernel.shape[0 if head.transposed else 1])


def dense(logits: Logits) -> Float[Array, "rows length vocab"]:
    """All the logits as float32 [N, T, V]; for blocks and small models."""
    if isinstance(logits, DenseLogits):
        return logits.values.astype(jnp.float32)
    return interface.project(logits.hidden, logits.head)


def take_block(
    logits: Logits, start: int | Int[Array, ""], size: int, keep: Bool[Array, "rows size"]
) -> Logits:
    """The logits of `size` positions from `start`, with zeros for what is not kept.

    Zeros go in before any product, so a dropped position that holds NaN or inf disturbs neither
    the values nor, as 0 · NaN, the kernel's gradient.
    """
    field = "values" if isinstance(logits, DenseLogits) else "hidden"
    block = jax.lax.dynamic_slice_in_dim(getattr(logits, field), start, size, axis=1)
    block = jnp.where(keep[..., None], block, jnp.zeros_like(block))
    return dataclasses.replace(logits, **{field: block})


def take_teacher_block(
    logits: TeacherLogits, start: int | Int[Array, ""], size: int, keep: Bool[Array, "rows size"]
) -> Float[Array, "rows size vocab"] | TopKLogits:
    """The teacher's side of a block: dense float32 logits, or the block's K ids."""
    if not isinstance(logits, TopKLogits):
        return dense(take_block(logits, start, size, keep))
    ids, log_probs = (
        jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (logits.ids, logits.log_probs)
    )
    return logits.replace(ids=ids, log_probs=jnp.where(keep[..., None], log_probs, 0.0))


def hidden_gradient(
    block: Logits, gradient: Float[Array, "rows size vocab"]
) -> Float[Array, "rows size features"]:
    """The gradient of the logits carried back to the values or the hidden states, float32."""
    if isinstance(block, DenseLogits):
        return gradient
    head = block.head
    equation = "ntv,ve->nte" if head.transposed else "ntv,ev->nte"
    kernel = head.kernel.astype(jnp.float32)
    return head.scale * jnp.einsum(equation, gradient, kernel, precision=_precision(block.hidden))


def kernel_gradient(
    block: ProjectedLogits, gradient: Float[Array, "rows size vocab"], groups: int
) -> Float[Array, "groups kernel_rows kernel_columns"]:
    """The gradient of the logits carried back to the head's kernel, float32, by groups of rows.

    Args:
      block: hidden states of the block's positions, [N, t, E].
      gradient: of the logits, [N, t, V].
      groups: equal groups of consecutive rows to keep apart (see `fused_token_loss`).

    Returns:
      [groups, E, V], or [groups, V, E] where the head is transposed.
    """
    head = block.head
    hidden = head.scale * block.hidden.astype(jnp.float32)
    equation = "gntv,gnte->gve" if head.transposed else "gnte,gntv->gev"
    grouped = [_group(x, groups) for x in (hidden, gradient)]
    operands = reversed(grouped) if head.transposed else grouped
    return jnp.einsum(equation, *operands, precision=_precision(block.hidden))


def _group(values, groups):
    return values.reshape(groups, values.shape[0] // groups, *values.shape[1:])


def _precision(hidden):
    """As in `interface.project`: float32 states are multiplied without rounding the operands."""
    bfloat16 = hidden.dtype == jnp.bfloat16
    return jax.lax.Precision.DEFAULT if bfloat16 else jax.lax.Precision.HIGHEST
