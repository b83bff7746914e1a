"""Teachers that are the student itself, now or on average: their parameters are in the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gkd.distill.types import Batch, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class StudentTeacher:
    """A `teacher_logits_fn` whose parameters are the student's, of the step that begins.

    Attributes:
      logits_fn: (params, batch, rollout) -> logits, see `train_step.make_teacher_logits_fn`.
      decay: decay of the moving average, in (0, 1); None is the current student.

    Source: for the average arXiv 2601.18734 (OPSD) and Tarvainen & Valpola 2017.
    """

    logits_fn: Callable[..., Any]
    decay: float | None = None

    def params_of(self, state: TrainState) -> Any:
        """Returns the parameters that score this step's sequences."""
        return jax.lax.stop_gradient(state.params if self.decay is None else state.average)

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
