"""A run's step as compiled programs over the mesh: one, or two where rewards read texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from gkd.data.rewards import rewards_of_rows
from gkd.distill import mixing, replay, train_step
from gkd.distill.types import Batch, TopK
from gkd.jobs import models
from gkd.jobs.method import Method
from gkd.jobs.models import LoadedModel
from gkd.parallel import mesh as meshes


def compile_program(
    step: train_step.TrainStep | replay.ReplayStep,
    method: Method,
    mesh: Mesh,
    rules: Mapping[str, str | None],
    state_shardings: Any,
    expert: LoadedModel | None,
    judge: LoadedModel | None,
    vocabulary: Any,
) -> Callable:
    """(state, teacher params, batch) -> (state, metrics), compiled; the state is donated.

    Args:
      step: from `Method.make_step`.
      method: says where its rewards come from.
      mesh, rules: where it runs.
      state_shardings: of the state.
      expert, judge: their parameters' shardings, and the judge's parameters.
      vocabulary: of rewards that read texts.
    """
    teacher = None if expert is None else expert.shardings
    if method.rewards_on_host:
        return _HostRewards(step, method, mesh, rules, state_shardings, teacher, vocabulary)
    if judge is None:
        return meshes.compile_step(step.step, mesh, state_shardings, teacher, rules)
    compiled = meshes.compile_step(
        step.step, mesh, state_shardings, teacher, rules, (judge.shardings,)
    )
    return lambda state, params, batch: compiled(state, params, batch, judge.params)


class _HostRewards:
    """Samples in one program, rewards each host's own rows by their texts, updates in another."""

    def __init__(self, step, method, mesh, rules, state_shardings, teacher_shardings, vocabulary):
        self._method, self._mesh, self._rules = method, mesh, rules
        self._vocabulary = vocabulary
        rows = meshes.batch_sharding(mesh)
        self._rollout = jax.jit(
            lambda state, batch: step.rollout(
                state, batch, mixing.step_key(state.seed, state.step)
            ),
            in_shardings=(state_shardings, rows),
            out_shardings=rows,
        )
        self._update = meshes.compile_step(
            step.update, mesh, state_shardings, teacher_shardings, rules, (rows,)
        )

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
        return self._update(state, teacher_params, batch, rollout)


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
        params = models.initial_params(learner, seed)
        return jax.jit(from_params, out_shardings=shardings)(params)

    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return StartingState(make, shardings, abstract)


def describe_dry_run(
    step: train_step.TrainStep | replay.ReplayStep,
    method: Method,
    state: Any,
    expert: LoadedModel | None,
    judge: LoadedModel | None,
    batch: Batch,
) -> dict[str, Any]:
    """Traces the whole step without a device, data or checkpoints: what cannot run fails here.

    Args:
      step, method, expert, judge: as in `compile_program`.
      state: abstract.
      batch: abstract.

    Returns:
      The sizes of the models, and the names of the step's metrics.
    """
    teacher, reward = (loaded and loaded.shapes for loaded in (expert, judge))
    if method.rewards_on_host:
        rollout = jax.eval_shape(step.rollout, state, batch, jax.random.PRNGKey(0))
        rows = rollout.target_tokens.shape[:1]
        rollout = rollout.replace(rewards=jax.ShapeDtypeStruct(rows, "float32"))
        _, metrics = jax.eval_shape(step.update, state, teacher, batch, rollout)
    else:
        _, metrics = jax.eval_shape(step.step, state, teacher, batch, reward)
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
