"""A student whose adapters alone are trained: its base, their start, and a resumed run's base."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
from jax.sharding import Mesh

from gkd.checkpoints.params import read_description
from gkd.checkpoints.saved_adapters import SavedAdapters, check_same_base, with_checksums
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
    rules = meshes.rules_of_model(rules, student.config.sizes.divided_heads, mesh)
    shardings = meshes.parameter_shardings(mesh, abstract, rules)
    make_unboxed = jax.jit(lambda key: nn.meta.unbox(make(key)), out_shardings=shardings)
    return Starting(lambda: make_unboxed(key), shardings, nn.meta.unbox(abstract))


def base_of(directory: pathlib.Path, lora: LoRA) -> str:
    """Finds the base of the adapters of a run that is resumed.

    Args:
      directory: the run directory.
      lora: settings of the adapters now.

    Raises:
      InvalidValue: the run trains no adapters, or others.
      MissingFile: the base does not exist.
    """
    saved = _saved(directory)
    if saved is None:
        raise InvalidValue(
            f"LORA is set, but {directory} trains the whole student: choose another MODEL_DIR, or "
            "set LORA to None"
        )
    if saved.lora != lora:
        raise InvalidValue(
            f"LORA has {lora.describe()}, but {directory} trains adapters with "
            f"{saved.lora.describe()}: restore that, or choose another MODEL_DIR"
        )
    return saved.find_base(directory)


def _saved(directory: pathlib.Path) -> SavedAdapters | None:
    """The description of the adapters of a run."""
    saved = read_description(directory).get("adapters")
    return saved and SavedAdapters.from_description(saved, f"{directory}: description, adapters")


def check_base(directory: pathlib.Path, student: LoadedModel, checksums: Mapping[str, int]) -> None:
    """Refuses to resume a run of adapters on a base with other weights.

    Args:
      directory: the run directory.
      student: the student, with its base.
      checksums: those that `read_base` returned.

    Raises:
      InvalidFile: the base has changed.
    """
    check_same_base(_saved(directory).checksums, checksums, student.checkpoint)
