"""A teacher of which only its K most probable ids are known, made comparable with a whole student.

Never truncated without a word: `renormalise` gives the K ids all of the teacher's probability, and
`bucket` keeps what the others have as one outcome more, for the teacher and the student alike.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gkd.distill.divergence_records import record_of
from gkd.distill.divergences import forward_kl
from gkd.distill.logits import UNUSABLE_LOGIT, Temperature, TopKLogits, temperature_pair
from gkd.distill.types import Batch, Rollout
from gkd.errors import InvalidValue

TAILS = ("bucket", "renormalise")
# A tail bucket never holds less: stored log-probabilities are rounded, and K may be all ids.
_LEAST_TAIL = 1e-7


def check_top_k(divergence: Callable, tail: str, temperature: Temperature) -> None:
    """Refuses what a truncated teacher has no answer for.

    Raises:
      ValueError: an unknown tail; reverse KL without a bucket (infinite: P is 0 where Q is not); a
        teacher's temperature other than 1 with a bucket (the tail's ids would have to be known).
    """
    if tail not in TAILS:
        raise InvalidValue(f"TOP_K_TAIL is {tail!r}: choose one of {', '.join(TAILS)}")
    record = record_of(divergence)
    if record.needs_sampled_token:
        raise InvalidValue("a sampled token may lie outside of the teacher's top-k ids")
    if tail == "renormalise" and not record.finite_on_truncation:
        raise InvalidValue(
            f"{record.name} is infinite where a renormalised top-k teacher has no probability: set "
            "TOP_K_TAIL to 'bucket', or choose another divergence"
        )
    pair = temperature_pair(temperature)
    if tail == "bucket" and pair.teacher != 1:
        raise InvalidValue(
            f"the teacher's temperature is {pair.teacher}, but its tail bucket was filled at 1: "
            "use TEMPERATURE = (the student's, 1.0), or TOP_K_TAIL = 'renormalise'"
        )


def restrict_to_top_k(
    student_logits: Float[Array, "rows size vocabulary"],
    teacher: TopKLogits,
    temperature: Temperature,
    valid: Bool[Array, " vocabulary"] | None,
) -> tuple[Array, Array, Temperature, Array | None]:
    """Restricts a student to the ids of a truncated teacher, as a divergence takes them.

    Args:
      student_logits: float32 [N, t, V].
      teacher: cached log-probabilities of the same tokens, K ids each.
      temperature: as of a divergence.
      valid: bool [V].

    Returns:
      Student logits, teacher logits, temperature and valid ids, for the divergence: over all V ids
      where the teacher is renormalised, else over K + 1 outcomes.
    """
    if teacher.tail == "renormalise":
        whole = jnp.full(student_logits.shape, UNUSABLE_LOGIT, jnp.float32)
        whole = jnp.put_along_axis(whole, teacher.ids, teacher.log_probs, axis=-1, inplace=False)
        return student_logits, whole, temperature, valid
    logits = student_logits / temperature_pair(temperature).student
    if valid is not None:
        logits = jnp.where(valid, logits, UNUSABLE_LOGIT)
    log_q = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_q, teacher.ids, axis=-1)
    others = jnp.put_along_axis(
        log_q, teacher.ids, jnp.float32(UNUSABLE_LOGIT), axis=-1, inplace=False
    )
    least = jnp.log(jnp.float32(_LEAST_TAIL))
    student_tail = jnp.maximum(jax.nn.logsumexp(others, axis=-1, keepdims=True), least)
    known = jnp.sum(jnp.exp(teacher.log_probs), axis=-1, keepdims=True)
    teacher_tail = jnp.log(jnp.maximum(1.0 - known, _LEAST_TAIL))
    student = jnp.concatenate([chosen, student_tail], axis=-1)
    truncated = jnp.concatenate([teacher.log_probs.astype(jnp.float32), teacher_tail], axis=-1)
    return student, truncated, 1.0, None


def truncation_bias(
    student_logits: Float[Array, "rows length vocabulary"],
    teacher_logits: Float[Array, "rows length vocabulary"],
    k: int,
    tail: str,
    divergence: Callable = forward_kl,
    valid: Bool[Array, " vocabulary"] | None = None,
) -> tuple[Float[Array, "rows length"], Float[Array, "rows length"]]:
    """Computes a divergence with the teacher truncated to its K most probable ids, and in full.

    Args:
      student_logits: [N, T, V].
      teacher_logits: [N, T, V], of the same tokens.
      k: number of ids that are kept.
      tail: 'bucket' or 'renormalise'.
      divergence: a function of gkd.distill.divergences.
      valid: bool [V], false for ids without probability; None is all true.

    Returns:
      The truncated and the full divergence in nats, each float32 [N, T].

    The outcomes (0.7, 0.3) and (0.2, 0.8) are left of P and Q, where forward KL is 0.5827:

    >>> teacher, student = (jnp.log(jnp.array([[p]])) for p in ([0.7, 0.2, 0.1], [0.2, 0.5, 0.3]))
    >>> truncated, full = truncation_bias(student, teacher, k=1, tail="bucket")
    >>> print(f"{truncated[0, 0]:.4f} {full[0, 0]:.4f}")
    0.5827 0.5838
    """
    usable = teacher_logits if valid is None else jnp.where(valid, teacher_logits, UNUSABLE_LOGIT)
    log_probs, ids = jax.lax.top_k(jax.nn.log_softmax(usable.astype(jnp.float32)), k)
    cut = TopKLogits(ids, log_probs, tail)
    student, teacher, _, mask = restrict_to_top_k(student_logits, cut, 1.0, valid)
    whole = divergence(student_logits, teacher_logits, valid=valid)
    return divergence(student, teacher, valid=mask), whole


def make_offline_teacher_logits_fn(tail: str = "bucket") -> Callable:
    """The second pure function of a teacher that scored the data set beforehand: no parameters.

    Args:
      tail: 'bucket' or 'renormalise', see above.
    """

    def teacher_logits_fn(params, batch: Batch, rollout: Rollout) -> TopKLogits:
        del params, rollout  # what was scored are the batch's targets
        return TopKLogits(batch.teacher_top_k.ids, batch.teacher_top_k.log_probs, tail)

    return teacher_logits_fn
