"""A student whose adapters alone are trained: its base, their start, and a resumed run's base."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.sharding import Mesh

from gkd.checkpoints.run_format import open_run_checkpoint
from gkd.checkpoints.saved_adapters import check_same_base, with_checksums
from gkd.checkpoints.tensors import read_onto
from gkd.errors import InvalidValue
from gkd.models.lora import LoRA, new_adapters
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from gkd.train.step_program import Starting


def read_base(student: LoadedModel) -> tuple[LoadedModel, dict[str, int]]:
    """Reads the frozen base of adapters.

    Args:
      student: the student, without parameters.

    Returns:
      The student with its base's parameters, and their checksums.

    Raises:
      InvalidValue: there is no checkpoint, or it is one of adapters.
    """
    opened = student.opened
    if opened is None:
        raise InvalidValue(
            "LORA is set, but STUDENT is not: adapters are added to a trained model; set STUDENT "
            "to a checkpoint, or LORA to None"
        )
    if opened.adapters is not None:
        raise InvalidValue(
            f"STUDENT {opened.path} holds adapters itself: write the whole model with `convert` "
            "first, and set STUDENT to that"
        )
    tensors, checksums = with_checksums(opened.tensors)
    return dataclasses.replace(student, params=read_onto(tensors, student.shapes)), checksums


def starting_adapters(
    student: LoadedModel, lora: LoRA, mesh: Mesh, rules: Mapping[str, str | None], seed: int
) -> Starting:
    """Describes new adapters on the mesh.

    Args:
      student: their base.
      lora: their settings.
      mesh, rules: the device mesh, and logical axis -> mesh axis.
      seed: PRNG seed of the run.
    """
    boxed = jax.eval_shape(student.model.init, jax.random.PRNGKey(0))

    def make(key):
        return new_adapters(boxed, lora, key)

    key = jax.random.PRNGKey(seed)
    abstract = jax.eval_shape(make, key)
    rules = meshes.rules_of_model(rules, student.config.sizes.num_heads, mesh)
    shardings = meshes.parameter_shardings(mesh, abstract, rules)
    make_unboxed = jax.jit(lambda key: nn.meta.unbox(make(key)), out_shardings=shardings)
    return Starting(lambda: make_unboxed(key), shardings, nn.meta.unbox(abstract))


def base_of(directory: pathlib.Path) -> str:
    """Finds the base of the adapters of a run that is resumed.

    Args:
      directory: the run directory.

    Raises:
      InvalidValue: the run trains no adapters.
      MissingFile: the base does not exist.
    """
    saved = open_run_checkpoint(directory).adapters
    if saved is None:
        raise InvalidValue(
            f"LORA is set, but {directory} trains the whole student: choose another MODEL_DIR, or "
            "set LORA to None"
        )
    return saved.find_base(directory)


def check_base(directory: pathlib.Path, student: LoadedModel, checksums: Mapping[str, int]) -> None:
    """Refuses to resume a run of adapters on a base with other weights.

    Args:
      directory: the run directory.
      student: the student, with its base.
      checksums: those that `read_base` returned.

    Raises:
      InvalidFile: the base has changed.
    """
    saved = open_run_checkpoint(directory).adapters
    check_same_base(saved.checksums, checksums, student.checkpoint)
