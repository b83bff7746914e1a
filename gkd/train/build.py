"""Builds an experiment's step program: models on the mesh, step, optimizer, abstract state."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from gkd.configuration.experiment import Experiment
from gkd.data.task_spec import BATCH_COLUMNS, TaskSpec
from gkd.distill import optimizers, replay, train_step
from gkd.distill.types import Batch, TopK
from gkd.evaluate.reward_scoring import load_reward_model
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.train import adapters
from gkd.train import method as methods
from gkd.train.setting_checks import check_method
from gkd.train.step_program import Starting, StepProgram

_SCALE = "multiply_by_parameter_scale"  # parameter of Adafactor


def build_step_program(
    experiment: Experiment, devices: list[Any] | None = None, from_shapes: bool = False
) -> StepProgram:
    """Builds the step program that `train` runs, a dry run describes and `plan` compiles.

    Args:
      experiment: the experiment to build.
      devices: devices of the mesh; None is all of this process's backend.
      from_shapes: reads no parameters, and no checkpoint at all of a model whose architecture is
        given.

    Raises:
      ValueError: settings that do not fit together, in one line.
      FileNotFoundError: a checkpoint does not exist.
    """
    method, batches, task = experiment.method, experiment.batches, experiment.task
    check_method(method, experiment.teacher, experiment.student.dropout_rate)
    mesh = meshes.make_mesh(model=experiment.execution.model_parallelism, devices=devices)
    rules = meshes.rules_for(experiment.execution.fully_sharded)
    meshes.check_batch_divides(batches.size, mesh, batches.microbatches)
    (method.training_task or task).check_batch(batches.size)
    student, teacher, reward_model = _load_models(experiment, mesh, rules, from_shapes)
    checksums = {}
    if experiment.student.lora is not None and not from_shapes:
        student, checksums = adapters.read_base(student)
    trained = _trained(experiment, student, mesh, rules)
    valid = model_loading.scored_valid_ids(student, task)
    schedule = _learning_rate(experiment)
    optimizer = _optimizer(experiment, _per_update(schedule, method.updates_per_rollout))
    step = methods.make_step(
        experiment, student, teacher, reward_model, optimizer, valid, mesh.shape["data"]
    )
    batch = abstract_batch(
        method.training_task or task, batches.size, batches.input_length, batches.target_length,
        with_top_k=experiment.teacher.top_k_file is not None,
    )  # fmt: skip
    return StepProgram(
        mesh=mesh,
        rules=rules,
        experiment=experiment,
        step=step,
        state=starting_state(experiment, trained, optimizer, batch, mesh),
        student=student,
        teacher=teacher,
        reward_model=reward_model,
        valid=valid,
        batch=batch,
        learning_rate=schedule,
        base_checksums=checksums,
    )


def _load_models(experiment, mesh, rules, from_shapes):
    """The student, and the teacher and reward model where the method has them."""
    task, method = experiment.task, experiment.method

    def load(role, chosen, step=None, **execution):
        checkpoint = None if from_shapes and chosen.architecture is not None else chosen.checkpoint
        return model_loading.load_model(
            role, mesh, rules, task, chosen.architecture, checkpoint, step, **execution
        )

    chosen = experiment.student
    stacked = chosen.stacked
    if chosen.lora is not None and chosen.lora.names_a_layer and stacked is None:
        stacked = False
    student = load(
        "STUDENT", chosen, dtype=chosen.dtype, stacked_layers=stacked, remat=chosen.remat,
        with_params=False,
    )  # fmt: skip
    student = model_loading.with_dropout(student, chosen.dropout_rate)
    teacher = None
    if methods.teacher_is_student(experiment):
        teacher = dataclasses.replace(student, opened=None)
    elif methods.needs_teacher(method) and experiment.teacher.top_k_file is None:
        teacher = _frozen_teacher(experiment, load, student, mesh, from_shapes)
        teacher = model_loading.with_scored_ids(teacher, student.config.vocab_size)
    reward_model = load_reward_model(
        method.reward, None if from_shapes and method.reward_architecture else method.reward_model,
        method.reward_architecture, mesh, rules, task, with_params=not from_shapes,
    )  # fmt: skip
    return student, teacher, reward_model


def _frozen_teacher(experiment, load, student, mesh, from_shapes):
    """The teacher of a checkpoint, or the student as it was at the start of the run."""
    chosen = experiment.teacher
    initial = experiment.method.teacher_weights == "initial"
    if initial:
        start = experiment.student
        chosen = dataclasses.replace(
            chosen, checkpoint=chosen.checkpoint or start.checkpoint,
            architecture=start.architecture, stacked=start.stacked,
        )  # fmt: skip
    teacher = load(
        "TEACHER", chosen, chosen.step, stacked_layers=chosen.stacked, with_params=not from_shapes,
        **model_loading.inference_dtypes(chosen.dtype, mesh, chosen.architecture),
    )  # fmt: skip
    if not initial or from_shapes or teacher.opened is not None:
        return teacher
    params = model_loading.initial_params(student, experiment.seed)  # as the run begins with
    cast = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), params, teacher.shapes)
    return dataclasses.replace(teacher, params=jax.device_put(cast, teacher.shardings))


def _learning_rate(experiment):
    optimisation = experiment.optimisation
    return optimizers.warmup_constant_cooldown(
        optimisation.learning_rate, optimisation.warmup_steps, experiment.schedule.train_steps,
        optimisation.cooldown_steps,
    )  # fmt: skip


def _optimizer(experiment, learning_rate):
    make, scale = experiment.optimisation.optimizer or optimizers.adafactor, {}
    if experiment.student.lora is not None and _SCALE in inspect.signature(make).parameters:
        scale = {_SCALE: False}  # adapters start at 0, and would hardly leave it
    max_norm = experiment.optimisation.max_gradient_norm
    return make(learning_rate=learning_rate, max_norm=max_norm, **scale)


def _per_update(schedule, updates):
    """A schedule of steps for an optimizer, which counts its updates, several per step."""
    return schedule if updates == 1 else lambda count: schedule(count // updates)


def _trained(experiment, student, mesh, rules) -> Starting:
    """The parameters that are trained: the student's, or adapters of its own."""
    seed = experiment.seed
    if experiment.student.lora is not None:
        return adapters.starting_adapters(student, experiment.student.lora, mesh, rules, seed)
    make = functools.partial(model_loading.initial_params, student, seed)
    return Starting(make, student.shardings, student.shapes)


def starting_state(
    experiment: Experiment, trained: Starting, optimizer: Any, batch: Batch, mesh: Mesh
) -> Starting:
    """Describes the training state before the first step.

    Args:
      experiment: its replay memory and its moving average are part of the state.
      trained: the parameters that are trained.
      optimizer: an optax gradient transformation.
      batch: shapes of a batch, for the memory.
      mesh: the device mesh.
    """
    method = experiment.method
    averaged = methods.needs_teacher(method) and method.teacher_weights == "average"

    def from_params(params):
        state = train_step.init_state(params, optimizer, experiment.seed, averaged)
        if method.replay is None:
            return state
        return state.replace(replay=replay.empty_memory(method.replay, batch))

    shapes = jax.eval_shape(from_params, trained.abstract)
    shardings = meshes.shardings_like(mesh, shapes, shapes.params, trained.shardings)

    def make():
        return jax.jit(from_params, out_shardings=shardings)(trained.make())

    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return Starting(make, shardings, abstract)


def abstract_batch(
    task: TaskSpec, rows: int, input_length: int, target_length: int, with_top_k: bool = False
) -> Batch:
    """Describes the arrays of a task's batch by their shapes and dtypes.

    Args:
      task: the task; its features are the batch's columns.
      rows: B.
      input_length: S, tokens of a student's prompt.
      target_length: T, tokens of a target.
      with_top_k: add cached top-k logits of a teacher, with K = 1.

    Returns:
      A batch of `jax.ShapeDtypeStruct`.
    """
    return batch_of_lengths(task.feature_lengths(input_length, target_length), rows, with_top_k)


def batch_of_lengths(lengths: Mapping[str, int], rows: int, with_top_k: bool = False) -> Batch:
    """Describes the arrays of a batch whose features have the given lengths.

    Args:
      lengths: length of every feature in tokens.
      rows: B.
      with_top_k: as in `abstract_batch`.

    Returns:
      A batch of `jax.ShapeDtypeStruct`.
    """

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    columns = {BATCH_COLUMNS[name]: array("int32", length) for name, length in lengths.items()}
    top_k = None
    if with_top_k:
        target = lengths["targets"]
        top_k = TopK(array("int32", target, 1), array("float32", target, 1))
    return Batch(**columns, example_weights=array("float32"), teacher_top_k=top_k)
