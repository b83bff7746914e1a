"""DistiLLM's replay: the student's outputs are kept and learnt from again, more of them over time.

    u < share·(1 − t/T)   the student writes the batch's outputs, which go into the memory
    u < share             the step learns from rows drawn from the memory, prompts and outputs
    otherwise             from the data set's outputs

The share rises whenever the validation loss does. Everything is in the state: memory, share, loss.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array

from gkd.distill import mixing
from gkd.distill.rollouts import rollout_from_targets
from gkd.distill.train_step import Metrics, TrainStep
from gkd.distill.types import Batch, Rollout, TrainState
from gkd.errors import InvalidValue
from gkd.models.lora import Base

_DRAW = 0x7FFFFFFD  # folded into the step's key: no row draws from it


@dataclasses.dataclass(frozen=True)
class Replay:
    """Settings of a replay memory: its capacity, and the growth of the student's share.

    Attributes:
      capacity: rows remembered; the oldest are overwritten.
      share: initial share of steps on the student's samples.
      increase: added to the share whenever the validation loss has risen.
      margin: by how much the loss must rise for that, over the last evaluation's.
      metric: the evaluation's metric that is the validation loss.

    Raises:
      ValueError: a setting out of its range.

    Source: Ko et al. 2024 (DistiLLM, arXiv 2402.03898), section 3.2.
    """

    capacity: int = 1000
    share: float = 0.0
    increase: float = 0.1
    margin: float = 0.0
    metric: str = "reference_forward_kl"

    def __post_init__(self):
        if self.capacity < 1:
            raise InvalidValue(f"capacity of a replay is {self.capacity}: use 1 row or more")
        for name in ("share", "increase"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidValue(f"{name} of a replay is {getattr(self, name)}: use [0, 1]")
        if self.margin < 0:
            raise InvalidValue(f"margin of a replay is {self.margin}: use 0 or more")


@flax.struct.dataclass
class Memory:
    """The memory of a replay.

    Attributes:
      inputs: int32 [capacity, S], the student's prompts.
      rows: a `Rollout` of `capacity` rows; its weights are those of their examples.
      written: int32 [], rows ever put in.
      share: float32 [], of steps on the student's outputs.
      loss: float32 [], the validation loss of the last evaluation; inf before the first.
      teacher_inputs: int32 [capacity, S'], the teacher's prompts where they differ, else None.
    """

    inputs: Any
    rows: Any
    written: Any
    share: Any
    loss: Any
    teacher_inputs: Any = None


def empty_memory(replay: Replay, batch: Batch) -> Memory:
    """Makes the memory of step 0.

    Args:
      replay: its settings.
      batch: arrays or their shapes, as of the run's batches.

    Returns:
      The memory, without any sequence.
    """
    size = replay.capacity

    def zeros(column, dtype):
        return jnp.zeros((size, *column.shape[1:]), dtype)

    rows = Rollout(
        target_tokens=zeros(batch.decoder_target_tokens, jnp.int32),
        weights=zeros(batch.decoder_target_tokens, jnp.float32),
        log_probs=zeros(batch.decoder_target_tokens, jnp.float32),
        on_policy=jnp.ones(size, bool),
    )
    inputs, teacher_inputs = jax.tree.map(
        lambda column: zeros(column, jnp.int32),
        (batch.encoder_input_tokens, batch.teacher_encoder_input_tokens),
    )
    share, loss = jnp.float32(replay.share), jnp.float32(float("inf"))
    return Memory(inputs, rows, jnp.int32(0), share, loss, teacher_inputs)


def remember(memory: Memory, batch: Batch, written: Rollout) -> Memory:
    """Puts a batch's prompts and outputs into the memory, over the oldest."""
    capacity = memory.inputs.shape[0]
    count = min(batch.encoder_input_tokens.shape[0], capacity)
    places = (memory.written + jnp.arange(count)) % capacity

    def put(store, new):
        return store.at[places].set(new[:count])

    return memory.replace(
        inputs=put(memory.inputs, batch.encoder_input_tokens),
        teacher_inputs=jax.tree.map(put, memory.teacher_inputs, batch.teacher_encoder_input_tokens),
        rows=jax.tree.map(put, memory.rows, written),
        written=memory.written + count,
    )


def draw(memory: Memory, key: Array, batch: Batch) -> tuple[Batch, Rollout]:
    """As many remembered rows as the batch has, with replacement, their prompts in its place."""
    known = jnp.clip(memory.written, 1, memory.inputs.shape[0])
    chosen = jax.random.randint(key, batch.example_weights.shape, 0, known)
    rows = jax.tree.map(lambda x: x[chosen], memory.rows)
    prompts, teacher_prompts = jax.tree.map(
        lambda x: x[chosen], (memory.inputs, memory.teacher_inputs)
    )
    batch = batch.replace(
        encoder_input_tokens=prompts, teacher_encoder_input_tokens=teacher_prompts
    )
    return batch, rows


def adapt(replay: Replay, memory: Memory, loss: float | Array) -> Memory:
    """The memory after an evaluation: a larger share if the validation loss has risen."""
    rose = loss > memory.loss + replay.margin
    share = jnp.where(rose, jnp.minimum(memory.share + replay.increase, 1.0), memory.share)
    return memory.replace(share=share, loss=jnp.asarray(loss, jnp.float32))


@dataclasses.dataclass(frozen=True)
class ReplayStep:
    """A `TrainStep` whose sequences come from a memory too: the same signature of `step`.

    Attributes:
      train_step: samples (its λ is not used) and updates.
      train_steps: T, over which new outputs give way to remembered ones.
      padding_id: the id that fills rows after their end.
    """

    train_step: TrainStep
    train_steps: int
    padding_id: int = 0

    def step(
        self,
        state: TrainState,
        teacher_params: Any,
        batch: Batch,
        reward_params: Any = None,
        base: Base | None = None,
    ) -> tuple[TrainState, Metrics]:
        """One step; see the module. The state's memory and its metrics tell what it did."""
        del reward_params
        key = mixing.step_key(state.seed, state.step)
        memory = state.replay
        coin = jax.random.uniform(jax.random.fold_in(key, mixing.COIN))
        new_share = memory.share * (1.0 - state.step / self.train_steps)

        def write(memory):
            return remember(memory, batch, self.train_step.rollout(state, batch, key, base=base))

        memory = jax.lax.cond(coin < new_share, write, lambda memory: memory, memory)
        replays = (coin < memory.share) & (memory.written > 0)
        batch, rollout = jax.lax.cond(
            replays,
            lambda: draw(memory, jax.random.fold_in(key, _DRAW), batch),
            lambda: (batch, rollout_from_targets(batch, padding_id=self.padding_id)),
        )
        state, metrics = self.train_step.update(
            state.replace(replay=memory), teacher_params, batch, rollout, base
        )
        one = jnp.float32(1)
        metrics["student_share"] = (memory.share, one)
        metrics["remembered"] = (memory.written.astype(jnp.float32), one)
        return state, metrics
