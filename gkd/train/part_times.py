"""Times the parts of a step by themselves, each as its own program."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from gkd.distill import mixing
from gkd.distill.types import Batch
from gkd.parallel import mesh as meshes
from gkd.train.method import rewards_on_host
from gkd.train.step_program import StepProgram


def part_seconds(
    program: StepProgram, state: Any, teacher_params: Any, batch: Batch, repeats: int = 3
) -> dict[str, float]:
    """Medians of `rollout` (with the encoder) and of the teacher's forward pass.

    A step is one program: what these two leave of its time is the update, and what they share.

    Args:
      program: the run's step program.
      state, teacher_params, batch: as the step takes them; nothing is donated.
      repeats: runs of each after the first, which compiles.

    Returns:
      sampling_seconds, and teacher_seconds where there is a teacher.
    """
    step = getattr(program.step, "train_step", program.step)  # of a step with replay
    scorer = program.reward_model and program.reward_model.params
    rows = meshes.batch_sharding(program.mesh)
    rollout = jax.jit(
        lambda state, batch, scorer, base: step.rollout(
            state, batch, mixing.step_key(state.seed, state.step), scorer, base
        ),
        out_shardings=rows,
    )

    def timed(function, *arguments):
        seconds = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            result = jax.block_until_ready(function(*arguments))
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[1:]), result

    taken, written = timed(rollout, state, batch, scorer, program.base)
    found = {"sampling_seconds": taken}
    if program.teacher is not None:
        if rewards_on_host(program.method):
            written = written.replace(rewards=_any_rewards(written))
        score = jax.jit(lambda *given: _sums(step.teacher_logits_fn(*given)))
        found["teacher_seconds"], _ = timed(score, teacher_params, batch, written)
    return found


def _any_rewards(written):
    """Rewards of a rollout, half of them 1: the time does not depend on which."""
    count = written.on_policy.shape[0]
    return jax.device_put(jnp.arange(count) % 2.0, written.on_policy.sharding)


def _sums(tree):
    """A small result that needs all leaves of a tree."""
    return [jnp.sum(leaf) for leaf in jax.tree.leaves(tree)]
