"""The loss and its gradient, block by block along T: the logits never exist at full length."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from gkd.distill.logits import (
    Logits,
    ProjectedLogits,
    TeacherLogits,
    TopKLogits,
    check_same_vocabulary,
    dense,
    hidden_gradient,
    kernel_gradient,
    logits_shape,
    product_gradient,
    take_block,
    take_teacher_block,
)
from gkd.errors import InvalidValue

# One float32 block of logits; a handful of them are alive at a time.
_BLOCK_BYTES = 16 * 2**20

# (student logits [N, t, V], teacher's block or None, targets: a pytree of [N, t]) -> [N, t]
TokenLoss = Callable[..., Float[Array, "rows size"]]


def fused_token_loss(
    token_loss: TokenLoss,
    student: Logits,
    teacher: TeacherLogits | None,
    targets: Any,
    coefficients: Float[Array, "rows length"],
    *,
    token_metrics: Callable[..., dict[str, Any]] | None = None,
    block_size: int | None = None,
    data_shards: int = 1,
) -> tuple[Float[Array, ""], Float[Array, "rows length"], dict[str, Float[Array, "rows length"]]]:
    """Σ coefficients · loss over all tokens, without ever holding [N, T, V].

    Walks blocks of positions, so the rows keep their sharding. Under differentiation the forward
    pass already forms the gradients for the student's hidden states and for the kernel of a head
    that is trained (in float32); the backward pass only scales them. Nothing flows to the teacher.

    Args:
      token_loss: the loss of a block, (student logits float32 [N, t, V], the teacher's likewise or
        a block of `TopKLogits` or None, targets) -> [N, t]. Temperature, β and the valid ids are
        closed over.
      student: the student's logits, N rows of T tokens.
      teacher: the teacher's, in any form, or None for a loss without one.
      targets: further arguments of the loss of a token: int32 [N, T], or a pytree of arrays
        [N, T]; no gradient flows into it.
      coefficients: float32 [N, T]; where one is 0, that position's logits and targets are replaced
        and its loss and metrics are 0: padding enters no product, whatever it holds (NaN, inf).
      token_metrics: with the arguments of `token_loss`, returns a dict of [N, t] values that cost
        little beside the loss; they are not differentiated.
      block_size: positions a block; by default as many as make a block of logits a few tens of MB.
      data_shards: number of devices that share the rows. Each then sums its own rows' kernel
        gradient, and they are added once at the end rather than in every block.

    Returns:
      The sum, differentiable in `student` and `coefficients`; the loss of each token [N, T] and
      the metrics by name, each [N, T], without gradient.

    Raises:
      ValueError: vocabularies or shapes differ, or the rows do not divide over `data_shards`.
    """
    if isinstance(student, ProjectedLogits):
        student = student.replace(inner=None)  # no part of these logits
    _check(student, teacher, coefficients, data_shards)
    rows, length, vocabulary = logits_shape(student)
    size = block_size or automatic_block_size(rows // data_shards, length, vocabulary)
    walk = functools.partial(
        _walk, token_loss, token_metrics, _balanced_size(length, size), data_shards
    )

    @jax.custom_vjp
    def total(student, teacher, targets, coefficients):
        per_token, metrics, _ = walk(student, teacher, targets, coefficients, with_gradient=False)
        return jnp.sum(coefficients * per_token), per_token, metrics

    def forward(*primals):
        student, teacher, targets, coefficients = jax.tree.map(lambda leaf: leaf.value, primals)
        trains_head = isinstance(student, ProjectedLogits) and primals[0].head.kernel.perturbed
        per_token, metrics, gradient = walk(
            student, teacher, targets, coefficients, with_gradient=True, trains_head=trains_head
        )
        outputs = jnp.sum(coefficients * per_token), per_token, metrics
        return outputs, (gradient, per_token)

    def backward(residuals, cotangents):
        # Only the sum's cotangent counts: the per-token values are for reading.
        gradient, per_token = residuals
        if isinstance(cotangents[0], SymbolicZero):  # nothing depends on the sum
            return None, None, None, None
        scaled = jax.tree.map(  # no gradient (None) of a head that is not trained
            lambda g, primal: None if g is None else (cotangents[0] * g).astype(primal.dtype),
            gradient, student, is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip
        return scaled, None, None, cotangents[0] * per_token

    total.defvjp(forward, backward, symbolic_zeros=True)
    return total(student, teacher, targets, coefficients)


def automatic_block_size(rows: int, length: int, vocabulary: int) -> int:
    """Positions a block so that its float32 logits, `rows` on one device, stay near 16 MB."""
    return max(1, min(length, _BLOCK_BYTES // (4 * rows * vocabulary)))


def _balanced_size(length, largest):
    """The block size between half the largest and the largest that wastes the fewest positions."""
    largest = min(largest, length)
    return min(range(largest, largest // 2, -1), key=lambda size: -length % size)


def _walk(
    token_loss, token_metrics, size, groups, student, teacher, targets, coefficients, *,
    with_gradient, trains_head=False,
):  # fmt: skip
    """Per-token losses, metrics and, if asked, the float32 gradient of the sum for the student."""
    length = coefficients.shape[1]
    count = -(-length // size)

    def block(kernel_sum, index):
        # The last block is moved back to end with the row; what it repeats is dropped below.
        start = jnp.minimum(index * size, length - size)
        coefficient, target = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), (coefficients, targets)
        )
        keep = coefficient != 0
        target = jax.tree.map(lambda x: jnp.where(keep, x, 0), target)
        piece = take_block(student, start, size, keep)
        logits = dense(piece)
        reference = None
        if teacher is not None:
            reference = take_teacher_block(teacher, start, size, keep)
        metrics = token_metrics(logits, reference, target) if token_metrics else {}
        metrics = jax.tree.map(lambda x: jnp.where(keep, x, 0), metrics)

        def kept_loss(logits):
            return jnp.where(keep, token_loss(logits, reference, target), 0.0)

        if not with_gradient:
            return kernel_sum, (kept_loss(logits), metrics, ())
        losses, pull_back = jax.vjp(kept_loss, logits)
        (gradient,) = pull_back(coefficient)
        gradient = jnp.where(keep[..., None], product_gradient(piece, logits, gradient), 0.0)
        if kernel_sum is not None:
            repeated = start + jnp.arange(size) < index * size
            fresh = piece.replace(hidden=jnp.where(repeated[:, None], 0, piece.hidden))
            kernel_sum += kernel_gradient(fresh, gradient, groups)
        return kernel_sum, (losses, metrics, hidden_gradient(piece, gradient))

    kernel_sum = None
    if trains_head:
        kernel_sum = jnp.zeros((groups, *student.head.kernel.shape), jnp.float32)
    kernel_sum, stacked = jax.lax.scan(block, kernel_sum, jnp.arange(count))
    losses, metrics, hidden = jax.tree.map(lambda x: _join(x, length), stacked)
    if not with_gradient:
        return losses, metrics, None
    if not isinstance(student, ProjectedLogits):
        return losses, metrics, student.replace(values=hidden)
    head = student.head.replace(kernel=kernel_sum.sum(axis=0) if trains_head else None)
    return losses, metrics, student.replace(hidden=hidden, head=head)


def _join(blocks, length):
    """[K, N, t, ...] blocks -> [N, T, ...]; the last block ends with the row."""
    count, rows, size = blocks.shape[:3]
    joined = jnp.moveaxis(blocks, 0, 1).reshape(rows, count * size, *blocks.shape[3:])
    repeated = count * size - length
    if not repeated:
        return joined
    whole = (count - 1) * size
    return jnp.concatenate([joined[:, :whole], joined[:, whole + repeated :]], axis=1)


def _check(student, teacher, coefficients, data_shards):
    shape = logits_shape(student)
    if isinstance(teacher, TopKLogits):
        if teacher.ids.shape[:2] != shape[:2]:
            raise ValueError(
                f"the teacher's top-k scores {teacher.ids.shape[:2]} tokens, the student "
                f"{shape[:2]}: both must score the same"
            )
    elif teacher is not None:
        check_same_vocabulary(shape[-1], logits_shape(teacher)[-1])
        if shape != logits_shape(teacher):
            raise ValueError(
                f"student logits have shape {shape}, teacher logits {logits_shape(teacher)}: "
                "both models must score the same tokens"
            )
    if shape[:2] != coefficients.shape:
        raise ValueError(
            f"student logits score {shape[:2]} tokens, the rollout has {coefficients.shape}"
        )
    if shape[0] % data_shards:
        raise InvalidValue(
            f"{shape[0]} rows do not divide over {data_shards} devices: change the batch size"
        )
