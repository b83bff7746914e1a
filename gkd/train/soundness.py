"""Checks that a run's numbers are finite, and names what to change where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gkd.errors import NotFinite
from gkd.models.scoring import score_tokens
from gkd.runs.model_loading import LoadedModel


@jax.jit
def _all_finite(tree: Any) -> Any:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def all_finite(tree: Any) -> bool:
    """Returns whether all arrays of a tree are finite; call it in every process of a job."""
    return bool(np.asarray(_all_finite(tree).addressable_data(0)))


def check_outputs(records: Sequence[Sequence[Mapping[str, Any]]], number: int) -> None:
    """Refuses a student whose own outputs have no probability: its parameters are ruined.

    Args:
      records: outputs of every example, with their `log_prob`.
      number: number of the step.

    Raises:
      FloatingPointError: a log-probability is NaN.
    """
    values = [output.get("log_prob") for outputs in records for output in outputs]
    if np.isnan([value for value in values if value is not None]).any():
        advice = "lower LEARNING_RATE, or clip with MAX_GRADIENT_NORM"
        if number == 0:
            advice = "look at the STUDENT it starts from, and at STUDENT_DTYPE"
        raise NotFinite(
            f"the student's probabilities are NaN after step {number}, which is not saved: {advice}"
        )


def remedy(metrics: Mapping[str, Any], number: int, teacher: LoadedModel | None, batch: Any) -> str:
    """Names what to change where losses or gradients are not finite.

    Args:
      metrics: the step's, by name: (sum, weight).
      number: number of the step.
      teacher: None where there is none.
      batch: that of the step, on the mesh.
    """
    if teacher is not None and not _teacher_is_finite(teacher, batch):
        return (
            f"the logits of TEACHER {teacher.checkpoint} are not finite on this step's batch, "
            f"computed in {teacher.config.dtype}: set TEACHER_DTYPE to 'float32', or choose "
            "another TEACHER"
        )
    if "reward" in metrics and not np.isfinite(metrics["reward"][0]):
        return "the REWARD is not finite: correct it"
    if int(metrics["skipped"][0]) == number:
        return (
            "no update was finite since the first step, so LEARNING_RATE is not the cause: look at "
            "the STUDENT it starts from, STUDENT_DTYPE and the data"
        )
    return "lower LEARNING_RATE, clip with MAX_GRADIENT_NORM, or use another seed"


def _teacher_is_finite(teacher: LoadedModel, batch: Any) -> bool:
    """Returns whether the last hidden states of a teacher with finite parameters are finite."""
    model = teacher.model

    def hidden(params, batch):
        encoded = model.encode(params, batch.teacher_prompts)
        return score_tokens(model, params, encoded, batch.decoder_target_tokens).hidden

    return all_finite(jax.jit(hidden)(teacher.params, batch))
