"""One distillation step: roll out, score, update, composed from three pure functions.

    batch ─► encode ─► sample_fn ─► rollout ─┬─► teacher_logits_fn ─► P ─┐
      │                 (λ-coin)             │                           ├─► divergence_loss_fn
      └── data targets ───────┘              └─► student decoder ─► Q ───┘          │
                                                                                  update

`make_train_step` returns `rollout`, `update` and their composition `step`;
`gkd.parallel.mesh.compile_step` puts the step under one `jax.jit` over a mesh.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from gkd.distill import mixing
from gkd.distill.advantages import advantages
from gkd.distill.microbatches import join_rows, split_rows, sum_over
from gkd.distill.optimizers import update_if
from gkd.distill.rollouts import (
    padded_to,
    rollout_from_targets,
    rollout_metrics,
)
from gkd.distill.step_functions import StudentTeacher, next_average
from gkd.distill.types import Batch, Rollout, TrainState
from gkd.models.interface import Seq2SeqModel, end_ids
from gkd.models.lora import Base, whole
from gkd.models.row_parts import encode_rows
from gkd.models.scoring import score_tokens

Metrics = dict[str, Any]  # name -> (sum, weight), float32 scalars


def init_state(
    params: Any, optimizer: optax.GradientTransformation, seed: int, averaged: bool = False
) -> TrainState:
    """A `TrainState` at step 0.

    Args:
      params: the student's parameters, unboxed.
      optimizer: its state is made for `params`.
      seed: PRNG seed of the run.
      averaged: keep a moving average of the parameters, for a teacher.

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
        average=params if averaged else None,
    )


class Part(enum.StrEnum):
    """Names that a step's parts have in profiles and compiled programs; the rest is the update."""

    SAMPLING = "gkd_sampling"
    TEACHER = "gkd_teacher"
    REWARD = "gkd_reward"


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The pure functions of a step: `rollout`, `update`, and `step`, the two in one program.

    Made by `make_train_step`, which explains the attributes, but for this one:

    Attributes:
      updates: optimizer updates per rollout. The state's step counts them as one, and the step's
        metrics are their means.
    """

    student: Seq2SeqModel
    optimizer: optax.GradientTransformation
    divergence_loss_fn: Callable
    teacher_logits_fn: Callable | None
    sample_fn: Callable | None
    on_policy_fraction: mixing.Fraction
    samples: int
    mix_rows: bool
    reward_fn: Callable | None
    advantage: str
    microbatches: int
    dropout: bool
    updates: int = 1

    def rollout(
        self,
        state: TrainState,
        batch: Batch,
        rng: Array,
        reward_params: Any = None,
        base: Base | None = None,
    ) -> Rollout:
        """Generates this step's target sequences, one microbatch after the other.

        Args:
          state: the student's state; no gradient flows through what it writes.
          batch: prompts and the data set's outputs.
          rng: the step's key, `mixing.step_key`.
          reward_params: parameters of a reward model.
          base: the frozen base of a student whose adapters alone are trained.

        Returns:
          The sequences of every row, with their rewards where the program has them.
        """
        if not self._samples:
            return self._data_rollout(batch)
        params = jax.lax.stop_gradient(whole(state.params, base))

        def sample_part(part):
            rows, part = part
            encoded = self._encode(params, part)
            return self._roll_out(params, encoded, part, state.step, rng, rows, reward_params)

        everything = (batch.row_numbers, batch)
        if self.microbatches == 1:
            return sample_part(everything)
        rollout = jax.lax.map(sample_part, split_rows(everything, self.microbatches))
        return join_rows(rollout, self.samples)

    def update(
        self,
        state: TrainState,
        teacher_params: Any,
        batch: Batch,
        rollout: Rollout,
        base: Base | None = None,
    ) -> tuple[TrainState, Metrics]:
        """The optimizer's updates on given sequences; each encodes the prompts (again).

        Args:
          state: the student's state.
          teacher_params: the teacher's parameters; None without one, or where it is a
            `StudentTeacher`.
          batch: the prompts.
          rollout: the sequences to learn from, with rewards where the loss needs them.
          base: as for `rollout`.

        Returns:
          The new state, and the step's metrics as (sum, weight) pairs.
        """
        if self.updates == 1:
            return self._update_once(state, teacher_params, batch, rollout, base)

        def once(state, _):
            return self._update_once(state, teacher_params, batch, rollout, base)

        after, metrics = jax.lax.scan(once, state, None, length=self.updates)
        means = jax.tree.map(lambda values: jnp.mean(values, axis=0), metrics)
        return after.replace(step=state.step + 1), {**means, **_skip_counters(after)}

    def _update_once(self, state, teacher_params, batch, rollout, base):
        """One optimizer update."""
        rollout = self._with_advantages(rollout)
        teacher_params = self._teacher_params(state, teacher_params, base)

        def loss_of(params, *arguments, **options):
            return self._loss_sum(whole(params, base), *arguments, **options)

        gradient_fn = jax.value_and_grad(loss_of, has_aux=True)
        key = mixing.step_key(state.seed, state.step) if self.dropout else None
        key = _fold(key, mixing.DROPOUT)

        def part_of(index, part, rollout):
            (loss, (weight, metrics)), gradients = gradient_fn(
                state.params, teacher_params, part, rollout, dropout_rng=_fold(key, index)
            )
            return gradients, loss, weight, metrics

        if self.microbatches == 1:
            return self._apply(state, *part_of(0, batch, rollout), rollout)

        parts = split_rows(batch, self.microbatches)
        written = split_rows(rollout, self.microbatches, self.samples)
        totals = sum_over(part_of, jnp.arange(self.microbatches), parts, written)
        return self._apply(state, *totals, rollout)

    def step(
        self,
        state: TrainState,
        teacher_params: Any,
        batch: Batch,
        reward_params: Any = None,
        base: Base | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Rollout and update in one program; one encoder pass serves both where it can."""
        rng = mixing.step_key(state.seed, state.step)
        if self.microbatches > 1 or self.dropout or self.updates > 1:
            rollout = self.rollout(state, batch, rng, reward_params, base)
            return self.update(state, teacher_params, batch, rollout, base)
        teacher_params = self._teacher_params(state, teacher_params, base)

        def roll_out_and_score(trained):
            params = whole(trained, base)
            encoded = self._encode(params, batch)
            frozen = jax.lax.stop_gradient((params, encoded))
            rollout = self._roll_out(
                *frozen, batch, state.step, rng, batch.row_numbers, reward_params
            )
            rollout = jax.lax.stop_gradient(self._with_advantages(rollout))
            scored = self._loss_sum(params, teacher_params, batch, rollout, encoded)
            return scored[0], (*scored[1], rollout)

        scored = jax.value_and_grad(roll_out_and_score, has_aux=True)(state.params)
        (loss, (weight, metrics, rollout)), gradients = scored
        return self._apply(state, gradients, loss, weight, metrics, rollout)

    def _teacher_params(self, state, given, base):
        """The parameters that score: those given, or the student's own of the state."""
        teacher = self.teacher_logits_fn
        if not isinstance(teacher, StudentTeacher):
            return given
        return teacher.params_of(state, base)

    def _encode(self, params, batch, dropout_rng=None):
        tokens, parts = batch.encoder_input_tokens, batch.input_parts
        return encode_rows(self.student, params, tokens, parts, dropout_rng)

    @property
    def _samples(self) -> bool:
        """Returns whether any step samples; decided before tracing."""
        return mixing.student_generates(self.on_policy_fraction)

    def _roll_out(self, params, encoded, batch, step, rng, rows, reward_params=None) -> Rollout:
        """The sequences of some rows: data, samples, or what the coins say; and their rewards."""
        rollout = self._choose(params, encoded, batch, step, rng, rows)
        if self.reward_fn is None:
            return rollout
        with jax.named_scope(Part.REWARD):
            rewards = self.reward_fn(reward_params, batch, rollout)
        return rollout.replace(rewards=jax.lax.stop_gradient(rewards))

    def _choose(self, params, encoded, batch, step, rng, rows) -> Rollout:
        fraction = self.on_policy_fraction
        if not self._samples:
            return self._data_rollout(batch)

        def write():
            with jax.named_scope(Part.SAMPLING):
                return self.sample_fn(params, encoded, batch, rng, rows)

        if not callable(fraction) and fraction == 1:
            return write()
        fraction = fraction(step) if callable(fraction) else fraction
        length = batch.decoder_target_tokens.shape[1]

        def data():
            return self._data_rollout(batch, self.samples)

        def own():
            return padded_to(write(), length, self.student.special_ids.padding)

        if not self.mix_rows:
            return jax.lax.cond(mixing.coin_is_on_policy(rng, fraction), own, data)
        coins = jnp.repeat(mixing.rows_on_policy(rng, rows, fraction), self.samples)  # [N]

        def pick(ours, theirs):
            return jnp.where(coins.reshape(-1, *[1] * (ours.ndim - 1)), ours, theirs)

        return jax.tree.map(pick, own(), data())

    def _data_rollout(self, batch, samples=1) -> Rollout:
        return rollout_from_targets(batch, samples, self.student.special_ids.padding)

    def _with_advantages(self, rollout: Rollout) -> Rollout:
        """Compares the rewards over the whole batch, whatever its microbatches."""
        if rollout.rewards is None:
            return rollout
        counted = rollout.on_policy & (jnp.sum(rollout.weights, axis=1) > 0)
        values = advantages(rollout.rewards, counted, self.samples, self.advantage)
        return rollout.replace(advantages=values)

    def _loss_sum(self, params, teacher_params, batch, rollout, encoded=None, dropout_rng=None):
        """The loss of some rows as a sum, and (weight, metrics)."""
        model = self.student
        if encoded is None:
            encoded = self._encode(params, batch, _fold(dropout_rng, 0))
        tokens, dropout_rng = rollout.target_tokens, _fold(dropout_rng, 1)
        logits = score_tokens(model, params, encoded, tokens, dropout_rng)
        teacher_logits = None
        if self.teacher_logits_fn is not None:
            with jax.named_scope(Part.TEACHER):
                teacher_logits = self.teacher_logits_fn(teacher_params, batch, rollout)
        total, weight, metrics = self.divergence_loss_fn(logits, teacher_logits, rollout)
        return total, (weight, metrics)

    def _apply(self, state, gradient_sum, loss, weight, metrics, rollout):
        """The optimizer's update from summed gradients, unless something is not finite."""
        scale = 1.0 / jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
        gradients = jax.tree.map(lambda g: g * scale, gradient_sum)
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, opt_state, finite = update_if(
            finite, self.optimizer, gradients, state.params, state.opt_state
        )
        skip = jnp.where(finite, 0, 1).astype(jnp.int32)
        average = state.average
        if average is not None:
            average = next_average(average, params, self.teacher_logits_fn.decay, finite)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            average=average,
            skipped=state.skipped + skip,
            skipped_in_a_row=(state.skipped_in_a_row + skip) * skip,
        )
        one, ids = jnp.float32(1), self.student.special_ids
        metrics = {
            "loss": (loss, weight),
            **metrics,
            **rollout_metrics(rollout, end_ids(ids), ids.padding),
            "gradient_norm": (norm, one),
            **_skip_counters(state),
        }
        return state, metrics


def make_train_step(
    student: Seq2SeqModel,
    optimizer: optax.GradientTransformation,
    *,
    divergence_loss_fn: Callable,
    teacher_logits_fn: Callable | None = None,
    sample_fn: Callable | None = None,
    on_policy_fraction: mixing.Fraction = 0.0,
    samples: int = 1,
    mix_rows: bool = False,
    reward_fn: Callable | None = None,
    advantage: str = "batch",
    microbatches: int = 1,
    dropout: bool = False,
) -> TrainStep:
    """Composes a step of (supervised or on-policy) distillation, or of fine-tuning.

    Args:
      student: the model that learns.
      optimizer: turns gradients of the mean loss into updates.
      divergence_loss_fn: (student logits, teacher logits or None, rollout) -> (sum, weight,
        metrics); the loss is Σ sum / Σ weight over all rows of all devices and microbatches.
      teacher_logits_fn: (teacher params, batch, rollout) -> logits; a `StudentTeacher` takes the
        parameters from the state; None trains on tokens alone.
      sample_fn: (params, encoded, batch, rng, rows) -> Rollout; needed unless λ is 0.
      on_policy_fraction: λ. The numbers 0 and 1 choose the program here and leave no branch in it;
        a function of the step is traced.
      samples: G, rows that sample_fn writes for a prompt.
      mix_rows: toss λ's coin for every prompt instead of once a step; then every step samples.
      reward_fn: (reward params, batch, rollout) -> rewards [N], where a reward is computed in the
        program; rewards from elsewhere come in with the rollout that `update` is given.
      advantage: baseline of the rewards, see `gkd.distill.advantages`.
      microbatches: number of parts of the batch that run one after the other to save memory.
      dropout: trains the student with its dropout. Sampling never uses it.

    Returns:
      rollout, update and step. A loss or gradient that is not finite leaves parameters and
      optimizer as they were and is counted in the state.

    Raises:
      ValueError: λ outside [0, 1], or sampling without a sample_fn.

    Source: Algorithm 1 of arXiv 2306.13649.
    """
    mixing.check_fraction(on_policy_fraction)
    step = TrainStep(
        student=student, optimizer=optimizer, divergence_loss_fn=divergence_loss_fn,
        teacher_logits_fn=teacher_logits_fn, sample_fn=sample_fn,
        on_policy_fraction=on_policy_fraction, samples=samples, mix_rows=mix_rows,
        reward_fn=reward_fn, advantage=advantage, microbatches=microbatches, dropout=dropout,
    )  # fmt: skip
    if step._samples and sample_fn is None:
        raise ValueError(f"λ is {on_policy_fraction} but no sample_fn is given: pass one, or λ=0")
    return step


def _skip_counters(state):
    """The state's counts of skipped updates, as metrics."""
    counts = {"skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
    return {name: (count.astype(jnp.float32), jnp.float32(1)) for name, count in counts.items()}


def _fold(key, number):
    return None if key is None else jax.random.fold_in(key, number)
