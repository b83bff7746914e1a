"""A run's step as compiled programs over the mesh: one, or two where rewards read texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from gkd.configuration.experiment import Experiment, Method
from gkd.data.tasks import TaskSpec
from gkd.distill import mixing, replay, train_step
from gkd.distill.types import Batch
from gkd.metrics.reward_functions import rewards_of_rows
from gkd.models.lora import Base
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from gkd.train.method import rewards_on_host, teacher_is_student


@dataclasses.dataclass(frozen=True)
class Starting:
    """A pytree before a run's first step: the training state, or the parameters in it.

    Attributes:
      make: makes it, on the mesh.
      shardings: shardings of its leaves.
      abstract: its leaves' shapes, dtypes and (of a state, for restoring one) shardings.
    """

    make: Callable[[], Any]
    shardings: Any
    abstract: Any


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """An experiment's models on the mesh, its step and its abstract state, before any data.

    Attributes:
      mesh, rules: the device mesh, and logical axis -> mesh axis.
      experiment: the experiment that it was built from.
      step: the pure step, see `method.make_step`.
      state: the training state before the first step.
      student, teacher, reward_model: the models; None where the method has none. A teacher that is
        the student has no `params`. A student has none either, or those of its adapters' base.
      valid: bool [V], ids that have probability.
      batch: shapes of a batch.
      learning_rate: step -> learning rate.
      base_checksums: checksums of the tensors of the adapters' base; empty without one.
    """

    mesh: Mesh
    rules: Mapping[str, str | None]
    experiment: Experiment
    step: train_step.TrainStep | replay.ReplayStep
    state: Starting
    student: LoadedModel
    teacher: LoadedModel | None
    reward_model: LoadedModel | None
    valid: Any
    batch: Batch
    learning_rate: Callable[[int], Any]
    base_checksums: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def method(self) -> Method:
        """The experiment's method."""
        return self.experiment.method

    @property
    def frozen_teacher(self) -> LoadedModel | None:
        """The teacher with parameters of its own; None where it is the student."""
        return None if teacher_is_student(self.experiment) else self.teacher

    def teacher_params(self, state: Any) -> Any:
        """Returns the parameters that a teacher scores with at a state; None without a teacher."""
        if not teacher_is_student(self.experiment):
            return None if self.teacher is None else self.teacher.params
        if self.method.teacher_weights == "initial":  # of a student with adapters
            return self.student.params
        return self._whole(state.params if state.average is None else state.average)

    def student_params(self, state: Any) -> Any:
        """Returns the student's parameters at a state, the adapters added to their base."""
        return self._whole(state.params)

    @property
    def base(self) -> Base | None:
        """The student's frozen base and the adapters' settings; None where all is trained."""
        return self._base_of(self.student.params)

    def _base_of(self, leaves):
        lora = self.experiment.student.lora
        return None if lora is None else Base(leaves, lora)

    def _whole(self, trained):
        return trained if self.base is None else self._add(self.base, trained)

    @functools.cached_property
    def _add(self):
        return jax.jit(Base.with_adapters, out_shardings=self.student.shardings)

    @property
    def task(self) -> TaskSpec:
        """The task that rows to train on come from."""
        return self.experiment.method.training_task or self.experiment.task

    @property
    def evaluation_rows(self) -> int:
        """Rows of an evaluation batch."""
        return self.experiment.evaluation.batch_size or self.experiment.batches.size

    def compile(self) -> Callable:
        """(state, teacher params, batch) -> (state, metrics), compiled; the state is donated."""
        if rewards_on_host(self.method):
            return _HostRewards(self)
        compiled = self._jitted(self.step.step, *self.frozen_models("shardings"))
        frozen = self.frozen_models("params")
        return lambda state, params, batch: compiled(state, params, batch, *frozen)

    def lower(self) -> dict[str, Callable[[], Any]]:
        """Functions that lower what `compile` compiles, by name, from shapes alone.

        Returns:
          One program, `step`, or `rollout` and `update` where rewards read texts.
        """
        teacher = self.frozen_teacher and self.frozen_teacher.shapes
        state, batch, frozen = self.state.abstract, self.batch, self.frozen_models("shapes")
        if rewards_on_host(self.method):
            programs = _HostRewards(self)
            written = self._abstract_rollout()
            return {
                "rollout": lambda: programs.lower_rollout(state, batch, frozen[1]),
                "update": lambda: programs.update.lower(state, teacher, batch, written, frozen[1]),
            }
        compiled = self._jitted(self.step.step, *self.frozen_models("shardings"))
        return {"step": lambda: compiled.lower(state, teacher, batch, *frozen)}

    def describe(self) -> dict[str, Any]:
        """Traces the whole step without a device, data or checkpoints: a mistake fails here.

        Returns:
          The sizes of the models, and the names of the step's metrics.
        """
        teacher = self.frozen_teacher and self.frozen_teacher.shapes
        state, batch, (reward, base) = self.state.abstract, self.batch, self.frozen_models("shapes")
        if rewards_on_host(self.method):
            written = self._abstract_rollout()
            _, metrics = jax.eval_shape(self.step.update, state, teacher, batch, written, base)
        else:
            _, metrics = jax.eval_shape(self.step.step, state, teacher, batch, reward, base)
        named = {"student": self.student.shapes, "teacher": teacher, "reward model": reward}
        if base is not None:
            named["adapters"] = state.params
        sizes = {
            name: sum(leaf.size for leaf in jax.tree.leaves(params))
            for name, params in named.items()
            if params is not None
        }
        facts = ", ".join(f"{name} {size:,} parameters" for name, size in sizes.items())
        shape = batch.encoder_input_tokens.shape, batch.decoder_target_tokens.shape
        print(f"dry run: the step is sound; {facts}; a batch has {shape[0]} and {shape[1]} tokens")
        return {"parameters": sizes, "metrics": sorted(metrics)}

    def frozen_models(self, attribute: str) -> tuple[Any, Base | None]:
        """The step's last arguments, reward model and base: their params, shapes or shardings."""
        reward_model = self.reward_model and getattr(self.reward_model, attribute)
        return reward_model, self._base_of(getattr(self.student, attribute))

    def _jitted(self, function, *more_shardings):
        teacher = self.frozen_teacher and self.frozen_teacher.shardings
        return meshes.compile_step(
            function, self.mesh, self.state.shardings, teacher, more_shardings
        )

    def _abstract_rollout(self):
        """Shapes of the rollout with its rewards, as the host returns it to the update."""
        key = jax.eval_shape(jax.random.PRNGKey, 0)
        frozen = self.frozen_models("shapes")
        rollout = jax.eval_shape(self.step.rollout, self.state.abstract, self.batch, key, *frozen)
        rows = rollout.target_tokens.shape[:1]
        return rollout.replace(rewards=jax.ShapeDtypeStruct(rows, "float32"))


class _HostRewards:
    """Samples in one program, rewards each host's own rows by their texts, updates in another."""

    def __init__(self, program: StepProgram):
        self._method, self._mesh = program.method, program.mesh
        self._vocabulary = program.task.vocabulary
        rows = meshes.batch_sharding(self._mesh)
        step = program.step
        (_, base), (_, self._base) = (
            program.frozen_models("shardings"),
            program.frozen_models("params"),
        )
        self._rollout = jax.jit(
            lambda state, batch, base: step.rollout(
                state, batch, mixing.step_key(state.seed, state.step), base=base
            ),
            in_shardings=(program.state.shardings, rows, base),
            out_shardings=rows,
        )
        self.update = program._jitted(step.update, rows, base)

    def lower_rollout(self, state: Any, batch: Batch, base: Base | None) -> Any:
        """Lowers the first program."""
        return self._rollout.lower(state, batch, base)

    def __call__(self, state: Any, teacher_params: Any, batch: Batch) -> Any:
        rollout = self._rollout(state, batch, self._base)
        texts = (batch.encoder_input_tokens, rollout.target_tokens, batch.decoder_target_tokens)
        rewards = rewards_of_rows(
            self._method.reward,
            self._vocabulary,
            *(meshes.local_rows(array) for array in texts),
            samples_per_prompt=self._method.samples,
        )
        rollout = rollout.replace(rewards=meshes.place_batch(rewards, self._mesh))
        return self.update(state, teacher_params, batch, rollout, self._base)
