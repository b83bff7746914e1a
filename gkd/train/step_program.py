"""A run's step as compiled programs over the mesh: one, or two where rewards read texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from gkd.data.tasks import TaskSpec
from gkd.distill import mixing, replay, train_step
from gkd.distill.types import Batch, TopK
from gkd.metrics.reward_functions import rewards_of_rows
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.runs.model_loading import LoadedModel
from gkd.train.method import Method


@dataclasses.dataclass(frozen=True)
class StartingState:
    """A run's state before its first step.

    Attributes:
      make: makes it, on the mesh.
      shardings: of its leaves.
      abstract: its leaves' shapes, dtypes and shardings, for restoring one.
    """

    make: Callable[[], Any]
    shardings: Any
    abstract: Any


def starting_state(
    mesh: Mesh,
    learner: LoadedModel,
    optimizer: Any,
    seed: int,
    memory: replay.Replay | None,
    lengths: tuple[int, int],
) -> StartingState:
    """How a run's state begins.

    Args:
      mesh: where it lives.
      learner: the student.
      optimizer: of optax.
      seed: of the run.
      memory: of a replay; None where there is none.
      lengths: of inputs and targets, for the memory.
    """

    def from_params(params):
        state = train_step.init_state(params, optimizer, seed)
        if memory is None:
            return state
        return state.replace(replay=replay.empty_memory(memory, *lengths))

    shapes = jax.eval_shape(from_params, learner.shapes)
    shardings = meshes.shardings_like(mesh, shapes, shapes.params, learner.shardings)

    def make():
        params = model_loading.initial_params(learner, seed)
        return jax.jit(from_params, out_shardings=shardings)(params)

    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return StartingState(make, shardings, abstract)


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A run before it touches data: its models on the mesh, its step, its abstract state.

    Attributes:
      mesh, rules: where it runs.
      method: says where its rewards come from.
      step: from `Method.make_step`.
      state: how it begins.
      learner, expert, judge: the student, the teacher and a reward's model, or None.
      task: what it trains on; its vocabulary is that of rewards that read texts.
      valid: bool [V], usable ids.
      batch: shapes of one.
      microbatches, train_steps, evaluation_rows: of the run.
    """

    mesh: Mesh
    rules: Mapping[str, str | None]
    method: Method
    step: train_step.TrainStep | replay.ReplayStep
    state: StartingState
    learner: LoadedModel
    expert: LoadedModel | None
    judge: LoadedModel | None
    task: TaskSpec
    valid: Any
    batch: Batch
    microbatches: int
    train_steps: int
    evaluation_rows: int

    def compile(self) -> Callable:
        """(state, teacher params, batch) -> (state, metrics), compiled; the state is donated."""
        if self.method.rewards_on_host:
            return _HostRewards(self)
        compiled = self._jitted(self.step.step, *self._judge_shardings)
        if self.judge is None:
            return compiled
        judge = self.judge.params
        return lambda state, params, batch: compiled(state, params, batch, judge)

    def lower(self) -> dict[str, Callable[[], Any]]:
        """Functions that lower what `compile` compiles, by name, from shapes alone.

        Returns:
          One program, `step`, or `rollout` and `update` where rewards read texts.
        """
        teacher, judge = (loaded and loaded.shapes for loaded in (self.expert, self.judge))
        state, batch = self.state.abstract, self.batch
        if self.method.rewards_on_host:
            programs = _HostRewards(self)
            written = self._abstract_rollout()
            return {
                "rollout": lambda: programs.lower_rollout(state, batch),
                "update": lambda: programs.update.lower(state, teacher, batch, written),
            }
        compiled = self._jitted(self.step.step, *self._judge_shardings)
        given = () if judge is None else (judge,)
        return {"step": lambda: compiled.lower(state, teacher, batch, *given)}

    def describe(self) -> dict[str, Any]:
        """Traces the whole step without a device, data or checkpoints: a mistake fails here.

        Returns:
          The sizes of the models, and the names of the step's metrics.
        """
        teacher, reward = (loaded and loaded.shapes for loaded in (self.expert, self.judge))
        state, batch = self.state.abstract, self.batch
        with meshes.on_mesh(self.mesh, self.rules):
            if self.method.rewards_on_host:
                written = self._abstract_rollout()
                _, metrics = jax.eval_shape(self.step.update, state, teacher, batch, written)
            else:
                _, metrics = jax.eval_shape(self.step.step, state, teacher, batch, reward)
        named = {"student": state.params, "teacher": teacher, "reward model": reward}
        sizes = {
            name: sum(leaf.size for leaf in jax.tree.leaves(params))
            for name, params in named.items()
            if params is not None
        }
        facts = ", ".join(f"{name} {size:,} parameters" for name, size in sizes.items())
        shape = batch.encoder_input_tokens.shape, batch.decoder_target_tokens.shape
        print(f"dry run: the step is sound; {facts}; a batch has {shape[0]} and {shape[1]} tokens")
        return {"parameters": sizes, "metrics": sorted(metrics)}

    @property
    def _judge_shardings(self):
        return () if self.judge is None else (self.judge.shardings,)

    def _jitted(self, function, *more_shardings):
        teacher = None if self.expert is None else self.expert.shardings
        return meshes.compile_step(
            function, self.mesh, self.state.shardings, teacher, self.rules, more_shardings
        )

    def _abstract_rollout(self):
        """What the host gives back to the update: the rollout with its rewards."""
        with meshes.on_mesh(self.mesh, self.rules):
            key = jax.eval_shape(jax.random.PRNGKey, 0)
            rollout = jax.eval_shape(self.step.rollout, self.state.abstract, self.batch, key)
        rows = rollout.target_tokens.shape[:1]
        return rollout.replace(rewards=jax.ShapeDtypeStruct(rows, "float32"))


class _HostRewards:
    """Samples in one program, rewards each host's own rows by their texts, updates in another."""

    def __init__(self, program: StepProgram):
        self._method, self._mesh, self._rules = program.method, program.mesh, program.rules
        self._vocabulary = program.task.vocabulary
        rows = meshes.batch_sharding(self._mesh)
        step = program.step
        self._rollout = jax.jit(
            lambda state, batch: step.rollout(
                state, batch, mixing.step_key(state.seed, state.step)
            ),
            in_shardings=(program.state.shardings, rows),
            out_shardings=rows,
        )
        self.update = program._jitted(step.update, rows)

    def lower_rollout(self, state: Any, batch: Batch) -> Any:
        """Lowers the first program."""
        with meshes.on_mesh(self._mesh, self._rules):
            return self._rollout.lower(state, batch)

    def __call__(self, state: Any, teacher_params: Any, batch: Batch) -> Any:
        with meshes.on_mesh(self._mesh, self._rules):
            rollout = self._rollout(state, batch)
        texts = (batch.encoder_input_tokens, rollout.target_tokens, batch.decoder_target_tokens)
        rewards = rewards_of_rows(
            self._method.reward,
            self._vocabulary,
            *(meshes.local_rows(array) for array in texts),
            samples_per_prompt=self._method.samples,
        )
        rollout = rollout.replace(rewards=meshes.place_batch(rewards, self._mesh))
        return self.update(state, teacher_params, batch, rollout)


def abstract_batch(
    rows: int, input_length: int, target_length: int, with_top_k: bool = False
) -> Batch:
    """Shapes of a batch; K is 1 where a teacher's top-k comes with it."""

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    top_k = None
    if with_top_k:
        top_k = TopK(array("int32", target_length, 1), array("float32", target_length, 1))
    return Batch(
        encoder_input_tokens=array("int32", input_length),
        decoder_target_tokens=array("int32", target_length),
        example_weights=array("float32"),
        teacher_top_k=top_k,
    )
