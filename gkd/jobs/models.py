"""Student and teacher of a job: architecture, parameters on the mesh, one vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gkd.checkpoints.params import find_step, read_description, restore_params
from gkd.data import vocabularies
from gkd.data.tasks import TaskSpec
from gkd.models.interface import Seq2SeqModel
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model of a job.

    Attributes:
      config: its architecture.
      model: its functions.
      shardings: of its parameters on the mesh.
      params: on the mesh; None for a student, whose parameters live in the training state.
      checkpoint: the step folder it comes from, None where it starts at random.
    """

    config: T5Config
    model: Seq2SeqModel
    shardings: Any
    params: Any
    checkpoint: str | None


def describe(config: T5Config, task: TaskSpec) -> dict[str, Any]:
    """What a checkpoint says of itself: architecture and vocabulary, as JSON."""
    return {"model": dataclasses.asdict(config), "vocabulary": describe_vocabulary(task)}


def describe_vocabulary(task: TaskSpec) -> dict[str, Any]:
    """Size and fingerprint of a task's vocabulary: equal if and only if every piece is."""
    return {
        "size": int(task.vocabulary.vocab_size),
        "sha256": vocabularies.fingerprint(task.vocabulary),
    }


def load_model(
    role: str,
    mesh: Mesh,
    rules: Mapping[str, str | None],
    task: TaskSpec,
    architecture: T5Config | None,
    checkpoint: str | None,
    step: int | str | None = None,
    dtype: str | None = None,
    with_params: bool = True,
) -> LoadedModel:
    """Builds a model and reads its parameters onto the mesh.

    Args:
      role: 'STUDENT' or 'TEACHER', for messages and macros.
      mesh: from `make_mesh`.
      rules: logical axis -> mesh axis.
      task: its vocabulary must be the one the checkpoint was trained with.
      architecture: of a model that starts at random; a checkpoint brings its own.
      checkpoint: a run directory, its checkpoints folder or a step folder; None for random.
      step: which of the checkpoint's steps, see `restore_params`.
      dtype: of parameters and computation, where it should not be the architecture's own.
      with_params: false leaves the parameters to `initial_params`.

    Returns:
      The model.

    Raises:
      ValueError: neither architecture nor checkpoint; another vocabulary; a model too small for it.
      FileNotFoundError: the checkpoint does not exist.
    """
    if checkpoint is None and architecture is None:
        raise ValueError(f"set {role} (a checkpoint) or {role}_MODEL (an architecture)")
    if checkpoint is not None:
        checkpoint = str(find_step(checkpoint, step))
        description = read_description(checkpoint)
        _check_vocabulary(role, checkpoint, description["vocabulary"], task)
        saved = description["model"]  # JSON knows no tuples
        architecture = T5Config(**{**saved, "mlp_activations": tuple(saved["mlp_activations"])})
    if dtype is not None:
        architecture = dataclasses.replace(architecture, dtype=dtype)
    if architecture.vocab_size < task.vocabulary.vocab_size:
        raise ValueError(
            f"{role} has {architecture.vocab_size} ids, the vocabulary of task {task.name} "
            f"{task.vocabulary.vocab_size}: set {role}_MODEL's vocab_size to that or more"
        )
    model = as_seq2seq(architecture)
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    params = None
    if with_params and checkpoint is not None:
        params = _read_params(nn.meta.unbox(boxed), shardings, checkpoint, dtype)
    return LoadedModel(architecture, model, shardings, params, checkpoint)


def _read_params(shapes, shardings, checkpoint, dtype=None):
    wanted = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, dtype or leaf.dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )
    return restore_params(checkpoint, wanted)


def with_dropout(loaded: LoadedModel, rate: float) -> LoadedModel:
    """The same model with this dropout rate; parameters do not depend on it."""
    config = dataclasses.replace(loaded.config, dropout_rate=rate)
    return dataclasses.replace(loaded, config=config, model=as_seq2seq(config))


def random_params(loaded: LoadedModel, seed: int) -> Any:
    """Random parameters, unboxed."""
    return nn.meta.unbox(loaded.model.init(jax.random.PRNGKey(seed)))


def initial_params(loaded: LoadedModel, seed: int) -> Any:
    """The student's parameters at step 0: its checkpoint's, or random ones made on the mesh."""
    if loaded.checkpoint is not None:
        shapes = jax.eval_shape(lambda: random_params(loaded, seed))
        return _read_params(shapes, loaded.shardings, loaded.checkpoint)
    return jax.jit(lambda: random_params(loaded, seed), out_shardings=loaded.shardings)()


def shared_valid_ids(student: LoadedModel, teacher: LoadedModel | None, task: TaskSpec) -> Any:
    """The mask of usable ids, one for both models: bool [V] on the device.

    Raises:
      ValueError: the two models' tables differ in size.
    """
    size = student.config.vocab_size
    if teacher is not None and teacher.config.vocab_size != size:
        raise ValueError(
            f"teacher vocabulary has {teacher.config.vocab_size} ids, student {size}: distillation "
            "needs one vocabulary; use a student with the teacher's table size"
        )
    return jnp.asarray(np.asarray(vocabularies.valid_ids(task.vocabulary, size)))


def _check_vocabulary(role, checkpoint, saved, task):
    here = describe_vocabulary(task)
    if saved != here:
        raise ValueError(
            f"{role} {checkpoint} was trained with a vocabulary of {saved['size']} ids "
            f"(sha256 {saved['sha256'][:12]}), task {task.name} has {here['size']} "
            f"({here['sha256'][:12]}): distillation needs one vocabulary; use the task's with "
            "which that model was trained"
        )
