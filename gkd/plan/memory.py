"""Resident HBM per chip of a run in closed form, and advice where a program does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gkd.program_cost.roofline import Chip
from gkd.runs.model_loading import LoadedModel
from gkd.train.model_flops import prompt_length, shard_counts_of
from gkd.train.step_program import StepProgram

_GIB = 2**30


def resident(program: StepProgram) -> dict[str, float]:
    """Computes the bytes resident on one chip from step to step.

    Args:
      program: the run's step program.

    Returns:
      Bytes of 'parameters', 'optimizer', 'rest of the state', and, if the run has them, 'teacher',
      'reward model' and 'base of the adapters'.
    """
    state = program.state.abstract
    held = {"parameters": share(state.params), "optimizer": share(state.opt_state)}
    held["rest of the state"] = share(state) - sum(held.values())
    others = {"teacher": program.frozen_teacher, "reward model": program.reward_model}
    if program.experiment.student.lora is not None:
        others["base of the adapters"] = program.student
    for name, loaded in others.items():
        if loaded is not None:
            held[name] = share(loaded.shapes)
    return held


def share(tree: Any) -> float:
    """Computes the bytes of one chip's shards of abstract arrays, without layout padding."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def cache_bytes(
    program: StepProgram, loaded: LoadedModel, prompts: int, max_length: int, samples: int = 1
) -> float:
    """Computes the bytes of the decoding cache on one chip: keys and values of all decoder layers.

    Args:
      program: the run's step program, with its mesh.
      loaded: the model that decodes.
      prompts: B, prompts decoded at the same time on all chips.
      max_length: T, the greatest length of a completion in tokens.
      samples: completions per prompt.

    Returns:
      Bytes for the prompts and the completions together, without layout padding.
    """
    config, shards = loaded.config, shard_counts_of(program, loaded.config, prompts)
    tokens = prompt_length(program, loaded) + samples * max_length
    width = config.sizes.key_width / shards.heads
    numbers = 2 * config.sizes.decoder_layers * width * tokens * prompts / shards.rows
    return numbers * jnp.dtype(config.dtype).itemsize


def advice(
    program: StepProgram, held: Mapping[str, float], peak: float | int, chip: Chip, batch: str
) -> list[str]:
    """Suggests changes to a program that does not fit, the most useful first.

    Args:
      program: the run's step program.
      held: resident bytes per chip, from `resident`.
      peak: peak bytes per chip that the program needs.
      chip: the chip, with its capacity.
      batch: name of the setting that holds the batch size.

    Returns:
      One suggestion per line, at least one.
    """
    changes = []
    models = {
        "teacher": held.get("teacher", 0.0),
        "reward model": held.get("reward model", 0.0),
        "student": held.get("parameters", 0.0) + held.get("optimizer", 0.0),
    }
    data = program.mesh.shape["data"]
    sharded = program.rules.get("embed") is not None
    for name, size in sorted(models.items(), key=lambda item: -item[1]):
        if size > chip.memory / 4:
            ways = ["a mesh with a larger model axis (--gin.MODEL_PARALLELISM, --mesh)"]
            if not sharded and data > 1:
                left = size / data / _GIB
                ways.insert(0, f"--gin.FULLY_SHARDED=True (to about {left:.2f} GiB)")
            changes.append(
                f"the {name} takes {size / _GIB:.1f} GiB of every chip: split it with "
                + " or ".join(ways)
            )
    if peak - sum(held.values()) > chip.memory / 4:
        changes += _smaller_temporaries(program, batch)
    return changes or [f"use a larger slice, or a smaller {batch}"]


def _smaller_temporaries(program, batch):
    changes = []
    rows = program.batch.encoder_input_tokens.shape[0] // program.mesh.shape["data"]
    if batch == "BATCH_SIZE":  # of training
        twice = 2 * program.experiment.batches.microbatches
        if rows % twice == 0:
            changes.append(f"--gin.MICROBATCHES={twice} halves what is alive")
        if not program.student.config.remat:
            changes.append("--gin.REMAT=True recomputes the student's activations")
    return changes or [f"a smaller {batch} shrinks the temporaries, now {rows} rows per chip"]
