"""The small frozen pytrees that the three functions of a distillation step exchange."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax.numpy as jnp

from gkd.models.row_parts import RowParts


@flax.struct.dataclass
class TopK:
    """The teacher's K most probable ids at every token of the batch's targets.

    Attributes:
      ids: int32 [B, T, K], all different.
      log_probs: float32 [B, T, K], log P of each over the valid ids, at temperature 1.
    """

    ids: Any
    log_probs: Any


@flax.struct.dataclass
class Batch:
    """B prompts with their reference outputs.

    Attributes:
      encoder_input_tokens: int32 [B, S], 0 after the end.
      decoder_target_tokens: int32 [B, T], through EOS, then 0.
      example_weights: float32 [B], 0 for rows that only fill up a batch.
      teacher_encoder_input_tokens: int32 [B, S'] where the teacher reads another prompt, else None.
      teacher_top_k: cached top-k of the teacher's log-probabilities, else None.
      places: int32 [B], the rows' numbers, which choose their noise; None: 0 … B-1.
      input_parts, teacher_input_parts: parts of the rows whose prompts are shorter, see `RowParts`;
        None encodes the padding.
    """

    encoder_input_tokens: Any
    decoder_target_tokens: Any
    example_weights: Any
    teacher_encoder_input_tokens: Any = None
    teacher_top_k: TopK | None = None
    places: Any = None
    input_parts: RowParts | None = flax.struct.field(pytree_node=False, default=None)
    teacher_input_parts: RowParts | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def teacher_prompts(self) -> Any:
        """The token ids that the teacher encodes: its own prompts where it has them."""
        own = self.teacher_encoder_input_tokens
        return self.encoder_input_tokens if own is None else own

    @property
    def teacher_parts(self) -> RowParts | None:
        """The parts of `teacher_prompts`."""
        own = self.teacher_encoder_input_tokens
        return self.input_parts if own is None else self.teacher_input_parts

    @property
    def row_numbers(self) -> Any:
        """int32 [B], the rows' numbers."""
        count = self.example_weights.shape[0]
        return jnp.arange(count) if self.places is None else self.places


@flax.struct.dataclass
class Rollout:
    """N = B·G output sequences, row = prompt·G + sample, and who wrote them.

    Attributes:
      target_tokens: int32 [N, T], through EOS, then 0.
      weights: float32 [N, T], 1 on supervised tokens (times the example's weight), else 0.
      log_probs: float32 [N, T], the sampler's log-probability of each token; 0 on data rows.
      on_policy: bool [N], true where the student wrote the row.
      rewards: float32 [N] where the method has rewards, else None.
      advantages: float32 [N], the reward over its baseline, 0 on data rows; None without rewards.
    """

    target_tokens: Any
    weights: Any
    log_probs: Any
    on_policy: Any
    rewards: Any = None
    advantages: Any = None


@flax.struct.dataclass
class TrainState:
    """Everything a step changes, and the seed it draws from: all of it is checkpointed.

    Attributes:
      step: int32 [], steps taken (also those whose update was skipped).
      params: the student's parameters.
      opt_state: the optimizer's state.
      seed: the run's random key; a step's noise is fold_in(seed, step).
      skipped: int32 [], updates skipped because the loss or gradient was not finite.
      skipped_in_a_row: int32 [], the length of the current streak of skipped updates.
      average: moving average of the parameters, where it is the teacher; else None.
      replay: memory of `gkd.distill.replay`; None where nothing is replayed.
    """

    step: Any
    params: Any
    opt_state: Any
    seed: Any
    skipped: Any
    skipped_in_a_row: Any
    average: Any = None
    replay: Any = None
