"""Next-token logits in the form a model leaves them: dense, or not yet multiplied out."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gkd.errors import InvalidValue
from gkd.models import interface
from gkd.models.interface import ProjectedLogits

# Logits below this have no probability. Finite, so that 0 · log 0 is 0 and not NaN.
_LOWEST_LOGIT = -1e32
# Invalid ids stay below every valid one, even in a row whose valid logits are all −inf.
UNUSABLE_LOGIT = -1e34

_Scalar = int | float | Float[Array, ""]
Temperature = _Scalar | tuple[_Scalar, _Scalar] | list[_Scalar]


class Temperatures(NamedTuple):
    """The numbers that the student's and the teacher's logits are divided by."""

    student: Any
    teacher: Any


def temperature_pair(temperature: Temperature) -> Temperatures:
    """Splits a temperature into the student's and the teacher's.

    Args:
      temperature: a number for both models, or a tuple or list (the student's, the teacher's).

    Returns:
      The two temperatures.

    Raises:
      ValueError: a tuple or list of another length than 2.

    >>> temperature_pair(2.0)
    Temperatures(student=2.0, teacher=2.0)
    >>> temperature_pair([0.7, 1.0])
    Temperatures(student=0.7, teacher=1.0)
    """
    if not isinstance(temperature, tuple | list):
        return Temperatures(temperature, temperature)
    if len(temperature) != 2:
        raise InvalidValue(
            f"TEMPERATURE is {temperature}: use a number, or (the student's, the teacher's)"
        )
    return Temperatures(*temperature)


@flax.struct.dataclass
class DenseLogits:
    """Logits that exist: `values`, any float dtype [N, T, V]."""

    values: Any


@flax.struct.dataclass
class TopKLogits:
    """A teacher's K best ids at every token, see gkd.distill.truncated_teacher.

    Attributes:
      ids: int32 [N, T, K].
      log_probs: float32 [N, T, K].
      tail: treatment of the other ids' probability, 'bucket' or 'renormalise'.
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


def product_gradient(
    block: Logits,
    logits: Float[Array, "rows size vocab"],
    gradient: Float[Array, "rows size vocab"],
) -> Float[Array, "rows size vocab"]:
    """The gradient of capped logits carried back to the logits before the cap, float32."""
    cap = None if isinstance(block, DenseLogits) else block.head.soft_cap
    return gradient if cap is None else gradient * (1.0 - jnp.square(logits / cap))


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
      gradient: gradient of the logits, [N, t, V].
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


def log_softmax(
    logits: Float[Array, "... vocabulary"], valid: Bool[Array, " valid_vocabulary"] | None
) -> Float[Array, "... vocabulary"]:
    """Log-probabilities that are always finite: at worst a huge negative number."""
    logits = jnp.maximum(logits, _LOWEST_LOGIT)
    if valid is not None:
        logits = jnp.where(valid, logits, UNUSABLE_LOGIT)
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=-1, keepdims=True))


def entropy(
    logits: Float[Array, "... vocabulary"],
    *,
    temperature: float = 1.0,
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Entropy of softmax(logits / temperature) over the valid ids, in nats, float32 [...]."""
    log_p = log_softmax(logits.astype(jnp.float32) / temperature, valid)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def token_log_prob(
    logits: Float[Array, "... vocabulary"],
    targets: Int[Array, "..."],
    valid: Bool[Array, " valid_vocabulary"] | None = None,
) -> Float[Array, "..."]:
    """Log-probability of the target ids, in nats, float32 [...]: raw, or over the valid ids only.

    A comparison picks the target instead of a gather: it fuses, its gradient is no scatter, and it
    works on a vocabulary that is spread over devices.
    """
    log_p = log_softmax(logits.astype(jnp.float32), valid)
    is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
    return jnp.sum(jnp.where(is_target, log_p, 0.0), axis=-1)


def check_same_vocabulary(student_vocabulary: int, teacher_vocabulary: int) -> None:
    """Raises a ValueError with the remedy unless both models have the same ids."""
    if student_vocabulary != teacher_vocabulary:
        raise InvalidValue(
            f"teacher vocabulary has {teacher_vocabulary} ids, student {student_vocabulary}: "
            "distillation needs one vocabulary; convert one model or choose two of the same family"
        )
