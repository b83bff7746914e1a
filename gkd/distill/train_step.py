"""One distillation step: roll out, score, update, composed from three pure functions.

    batch ─► encode ─► sample_fn ─► rollout ─┬─► teacher_logits_fn ─► P ─┐
      │                 (λ-coin)             │                           ├─► divergence_loss_fn ─► update
      └── data targets ───────┘              └─► student decoder ─► Q ───┘

`make_train_step` returns `rollout`, `update` and their composition `step`; `compile_step` puts any
of them under one `jax.jit` over a mesh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from gkd.distill import mixing
from gkd.distill.logits import ProjectedLogits
from gkd.distill.rollouts import rollout_from_samples, rollout_from_targets, shift_right
from gkd.distill.types import Batch, Rollout, TrainState
from gkd.models.interface import Seq2SeqModel

EOS_ID = 1
Metrics = dict[str, Any]  # name -> (sum, weight), float32 scalars


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The pure functions of a step.

    Attributes:
      rollout: (state, batch, rng) -> Rollout.
      update: (state, teacher_params, batch, rollout) -> (state, metrics).
      step: (state, teacher_params, batch) -> (state, metrics); the two in one program.
    """

    rollout: Callable
    update: Callable
    step: Callable


def init_state(params: Any, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """A `TrainState` at step 0.

    Args:
      params: the student's parameters, unboxed.
      optimizer: its state is made for `params`.
      seed: of all randomness of the run.

    Returns:
      The state.
    """
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        seed=jax.random.PRNGKey(seed),
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
    )


def make_sample_fn(model: Seq2SeqModel, sampler: Callable, valid, **options) -> Callable:
    """The first pure function: (params, encoded, batch, rng, rows) -> Rollout.

    Args:
      model: the student.
      sampler: `gkd.decode.sampling.sample`, or another with its signature.
      valid: bool [V], ids that may be written.
      **options: temperature, top_k, top_p; by default exactly the student's distribution.

    Returns:
      The function; its samples are as long as the batch's targets at most.
    """

    def sample_fn(params, encoded, batch, rng, rows):
        length = batch.decoder_target_tokens.shape[1]
        samples = sampler(
            model, params, encoded, rng, max_length=length, valid=valid, rows=rows, **options
        )
        return rollout_from_samples(
            samples.tokens, samples.log_probs, samples.lengths, batch.example_weights
        )

    return sample_fn


def make_teacher_logits_fn(model: Seq2SeqModel) -> Callable:
    """The second pure function: (teacher params, batch, rollout) -> Logits, without gradient."""

    def teacher_logits_fn(params, batch: Batch, rollout: Rollout) -> ProjectedLogits:
        tokens = batch.teacher_encoder_input_tokens
        tokens = batch.encoder_input_tokens if tokens is None else tokens
        encoded = model.encode(params, tokens)
        hidden = model.decode_hidden(params, encoded, shift_right(rollout.target_tokens))
        logits = ProjectedLogits(hidden.last, model.head(params))
        return jax.lax.stop_gradient(logits)

    return teacher_logits_fn


def _split(tree, microbatches):
    """[B, …] -> [M, B/M, …]; a microbatch takes every M-th row, so each device keeps its own."""

    def split(x):
        rows = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
        return jnp.swapaxes(rows, 0, 1)

    return jax.tree.map(split, tree)


def _join(tree):
    """The inverse of `_split`."""

    def join(x):
        rows = jnp.swapaxes(x, 0, 1)
        return rows.reshape(-1, *x.shape[2:])

    return jax.tree.map(join, tree)


def make_train_step(
    student: Seq2SeqModel,
    optimizer: optax.GradientTransformation,
    *,
    divergence_loss_fn: Callable,
    teacher_logits_fn: Callable | None = None,
    sample_fn: Callable | None = None,
    on_policy_fraction: mixing.Fraction = 0.0,
    microbatches: int = 1,
    dropout: bool = False,
) -> TrainStep:
    """Composes a step of (supervised or on-policy) distillation, or of fine-tuning.

    Args:
      student: the model that learns.
      optimizer: turns gradients of the mean loss into updates.
      divergence_loss_fn: (student logits, teacher logits or None, rollout) -> (sum, weight,
        metrics); the loss is Σ sum / Σ weight over all rows of all devices and microbatches.
      teacher_logits_fn: (teacher params, batch, rollout) -> logits; None trains on the tokens alone.
      sample_fn: (params, encoded, batch, rng, rows) -> Rollout; needed unless λ is 0.
      on_policy_fraction: λ. The numbers 0 and 1 choose the program here and leave no branch in it;
        a function of the step is traced.
      microbatches: how many parts of the batch are run one after the other to save memory.
      dropout: whether the student is trained with its dropout. Sampling never uses it.

    Returns:
      rollout, update and step. A loss or gradient that is not finite leaves parameters and
      optimizer as they were and is counted in the state.

    Raises:
      ValueError: λ outside [0, 1], or sampling without a sample_fn.

    Source: Algorithm 1 of arXiv 2306.13649.
    """
    mixing.check_fraction(on_policy_fraction)
    samples_sometimes = callable(on_policy_fraction) or on_policy_fraction > 0
    if samples_sometimes and sample_fn is None:
        raise ValueError(f"λ is {on_policy_fraction} but no sample_fn is given: pass one, or λ=0")

    def write(params, encoded, batch, state_step, rng, rows):
        """The sequences of this step for these rows: data, samples, or what the coin says."""
        if not samples_sometimes:
            return rollout_from_targets(batch)
        if not callable(on_policy_fraction) and on_policy_fraction == 1:
            return sample_fn(params, encoded, batch, rng, rows)
        fraction = on_policy_fraction
        fraction = fraction(state_step) if callable(fraction) else fraction
        return jax.lax.cond(
            mixing.coin_is_on_policy(rng, fraction),
            lambda: sample_fn(params, encoded, batch, rng, rows),
            lambda: rollout_from_targets(batch),
        )

    def rollout(state: TrainState, batch: Batch, rng: Array) -> Rollout:
        """Who writes what this step: sequences of all rows, one microbatch after the other."""
        if not samples_sometimes:
            return rollout_from_targets(batch)
        params = jax.lax.stop_gradient(state.params)

        def write_part(part):
            rows, part = part
            encoded = student.encode(params, part.encoder_input_tokens)
            return write(params, encoded, part, state.step, rng, rows)

        everything = (jnp.arange(batch.example_weights.shape[0]), batch)
        if microbatches == 1:
            return write_part(everything)
        return _join(jax.lax.map(write_part, _split(everything, microbatches)))

    def loss_sum(params, teacher_params, batch, written, encoded=None, dropout_rng=None):
        """The loss of some rows as a sum, and (weight, metrics)."""
        if encoded is None:
            encoded = student.encode(
                params, batch.encoder_input_tokens, dropout_rng=_fold(dropout_rng, 0)
            )
        inputs = shift_right(written.target_tokens)
        hidden = student.decode_hidden(params, encoded, inputs, dropout_rng=_fold(dropout_rng, 1))
        logits = ProjectedLogits(hidden.last, student.head(params))
        teacher_logits = None
        if teacher_logits_fn is not None:
            teacher_logits = teacher_logits_fn(teacher_params, batch, written)
        total, weight, metrics = divergence_loss_fn(logits, teacher_logits, written)
        return total, (weight, metrics)

    def apply(state, gradient_sum, loss, weight, metrics, written):
        """The optimizer's update from summed gradients, unless something is not finite."""
        scale = 1.0 / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
        gradients = jax.tree.map(lambda g: g * scale, gradient_sum)
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        skip = jnp.where(finite, 0, 1).astype(jnp.int32)
        state = state.replace(
            step=state.step + 1,
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            skipped=state.skipped + skip,
            skipped_in_a_row=(state.skipped_in_a_row + skip) * skip,
        )
        one = jnp.float32(1)
        metrics = {
            "loss": (loss, weight),
            **metrics,
            **_rollout_metrics(written),
            "gradient_norm": (norm, one),
            "skipped": (state.skipped.astype(jnp.float32), one),
            "skipped_in_a_row": (state.skipped_in_a_row.astype(jnp.float32), one),
        }
        return state, metrics

    def update(state: TrainState, teacher_params: Any, batch: Batch, written: Rollout):
        """One optimizer update on sequences already written; encodes the prompts (again)."""
        gradient_fn = jax.value_and_grad(loss_sum, has_aux=True)
        key = mixing.step_key(state.seed, state.step) if dropout else None
        key = _fold(key, mixing.DROPOUT)

        def part_of(index, part, part_written):
            rng = _fold(key, index)
            (loss, (weight, metrics)), gradients = gradient_fn(
                state.params, teacher_params, part, part_written, dropout_rng=rng
            )
            return gradients, loss, weight, metrics

        if microbatches == 1:
            return apply(state, *part_of(0, batch, written), written)

        def add(total, part):
            return jax.tree.map(jnp.add, total, part_of(*part)), None

        parts = (jnp.arange(microbatches), *_split((batch, written), microbatches))
        first = jax.tree.map(lambda x: x[0], parts)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part_of, *first)
        )
        totals, _ = jax.lax.scan(add, zeros, parts)
        return apply(state, *totals, written)

    def step(state: TrainState, teacher_params: Any, batch: Batch):
        """Rollout and update in one program; one encoder pass serves both where it can."""
        rng = mixing.step_key(state.seed, state.step)
        if microbatches > 1 or dropout:
            return update(state, teacher_params, batch, rollout(state, batch, rng))

        def roll_out_and_score(params):
            encoded = student.encode(params, batch.encoder_input_tokens)
            rows = jnp.arange(batch.example_weights.shape[0])
            frozen = jax.lax.stop_gradient((params, encoded))
            written = write(*frozen, batch, state.step, rng, rows)
            written = jax.lax.stop_gradient(written)
            loss, (weight, metrics) = loss_sum(params, teacher_params, batch, written, encoded)
            return loss, (weight, metrics, written)

        scored = jax.value_and_grad(roll_out_and_score, has_aux=True)(state.params)
        (loss, (weight, metrics, written)), gradients = scored
        return apply(state, gradients, loss, weight, metrics, written)

    return TrainStep(rollout, update, step)


def _fold(key, number):
    return None if key is None else jax.random.fold_in(key, number)


def _rollout_metrics(written: Rollout) -> Metrics:
    """Who wrote the step's sequences, how long they are, how many the limit cut off."""
    counted = (jnp.sum(written.weights, axis=-1) > 0).astype(jnp.float32)  # [N]
    lengths = jnp.sum(written.target_tokens > 0, axis=-1).astype(jnp.float32)
    cut = (written.target_tokens[:, -1] > EOS_ID).astype(jnp.float32)  # full, and no EOS
    rows = jnp.sum(counted)
    return {
        "on_policy": (jnp.sum(written.on_policy * counted), rows),
        "target_length": (jnp.sum(lengths * counted), rows),
        "cut_off": (jnp.sum(cut * counted), rows),
    }
