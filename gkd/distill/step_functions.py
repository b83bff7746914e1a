"""The first two functions of a step: the student samples, the teacher scores what was written."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gkd.distill.rollouts import rollout_from_samples
from gkd.distill.types import Batch, Rollout, TrainState
from gkd.models.interface import ProjectedLogits, Seq2SeqModel
from gkd.models.lora import Base, whole
from gkd.models.row_parts import encode_rows
from gkd.models.scoring import score_tokens


def make_sample_fn(
    model: Seq2SeqModel,
    sampler: Callable,
    valid,
    samples: int = 1,
    longest: int | None = None,
    **options,
) -> Callable:
    """The first pure function: (params, encoded, batch, rng, rows) -> Rollout.

    Args:
      model: the student.
      sampler: `gkd.decode.sampling.sample`, or another with its signature.
      valid: bool [V], ids that may be sampled.
      samples: G completions per prompt, from one encoding.
      longest: tokens of a sample at most, where they should be fewer than the targets have.
      **options: temperature, top_k, top_p; by default exactly the student's distribution.

    Returns:
      The function; its samples are as long as the batch's targets at most. Row `prompt·G + sample`
      draws the noise of that number, `rows` being the prompts' numbers in the whole batch.
    """

    def sample_fn(params, encoded, batch, rng, rows):
        length = min(batch.decoder_target_tokens.shape[1], longest or sys.maxsize)
        numbers = (rows[:, None] * samples + jnp.arange(samples)).reshape(-1)
        generated = sampler(
            model, params, encoded, rng,
            max_length=length, valid=valid, samples=samples, rows=numbers, **options,
        )  # fmt: skip
        weights = jnp.repeat(batch.example_weights, samples)
        return rollout_from_samples(
            generated.tokens, generated.log_probs, generated.lengths, weights
        )

    return sample_fn


def make_teacher_logits_fn(model: Seq2SeqModel) -> Callable:
    """The second pure function: (teacher params, batch, rollout) -> Logits, without gradient.

    A prompt is encoded once, however many of the rollout's rows belong to it.
    """

    def teacher_logits_fn(params, batch: Batch, rollout: Rollout) -> ProjectedLogits:
        encoded = encode_rows(model, params, batch.teacher_prompts, batch.teacher_parts)
        logits = score_tokens(model, params, encoded, rollout.target_tokens)
        return jax.lax.stop_gradient(logits)

    return teacher_logits_fn


@dataclasses.dataclass(frozen=True)
class StudentTeacher:
    """A `teacher_logits_fn` whose parameters are the student's, of the update that begins.

    Attributes:
      logits_fn: (params, batch, rollout) -> logits, see `make_teacher_logits_fn`.
      weights: 'current', 'average' (a moving one), or 'initial': the base of adapters.
      decay: decay of the moving average, in (0, 1).

    Source: for the average arXiv 2601.18734 (OPSD) and Tarvainen & Valpola 2017.
    """

    logits_fn: Callable[..., Any]
    weights: str = "current"
    decay: float = 0.999

    def params_of(self, state: TrainState, base: Base | None = None) -> Any:
        """Returns the parameters that score the sequences of the update from this state.

        Args:
          state: the state that the update begins with.
          base: the base of a student whose adapters alone are trained.
        """
        if self.weights == "initial":
            return jax.lax.stop_gradient(base.params)
        trained = state.params if self.weights == "current" else state.average
        return jax.lax.stop_gradient(whole(trained, base))

    def __call__(self, params: Any, batch: Batch, rollout: Rollout) -> Any:
        """Computes the logits of the rollout's tokens, without gradient."""
        return self.logits_fn(params, batch, rollout)


def next_average(average: Any, params: Any, decay: float, finite: Any) -> Any:
    """Moves the average towards the parameters: decay · average + (1 − decay) · params.

    Args:
      average: tree of the moving average.
      params: tree of the new parameters.
      decay: share of the average that stays.
      finite: bool []; where it is false the update was skipped, and the average stays.

    >>> next_average(jnp.array([1.0]), jnp.array([3.0]), 0.75, True).tolist()
    [1.5]
    """
    return jax.tree.map(
        lambda old, new: jnp.where(finite, decay * old + (1.0 - decay) * new, old), average, params
    )
