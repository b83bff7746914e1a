"""The seconds of a step's parts are medians of the runs after the one that compiles."""

import types

import jax
import jax.numpy as jnp
import pytest

from gkd.configuration import experiment
from gkd.distill.logits import ProjectedLogits
from gkd.distill.types import TrainState
from gkd.models.interface import Head
from gkd.parallel import mesh as meshes
from gkd.train import part_times


@pytest.mark.parametrize(
    "teacher, replays, scorer",
    [(None, False, None), ("a teacher", False, {"w": 1}), ("a teacher", True, None)],
)
def test_the_first_run_of_each_part_is_left_out(teacher, replays, scorer, monkeypatch):
    """Sampling takes 100 s and then 5, 1 and 3; the teacher 200 s and then 8, 4 and 6."""
    seconds = iter([100, 5, 1, 3, 200, 8, 4, 6])
    now = [0.0]
    calls = []

    def clock():
        calls.append(1)
        if len(calls) % 2 == 0:  # the end of a run
            now[0] += next(seconds)
        return now[0]

    monkeypatch.setattr(part_times.time, "perf_counter", clock)

    def rollout(state, batch, key, reward_params, base):
        assert jax.tree.structure(reward_params) == jax.tree.structure(scorer) and base is None
        return batch + state.step + 0 * key[0].astype(jnp.int32)

    def teacher_logits_fn(params, batch, written):
        return ProjectedLogits(params * (batch + written), Head(params))

    step = types.SimpleNamespace(rollout=rollout, teacher_logits_fn=teacher_logits_fn)
    if replays:  # samples by the step within
        step = types.SimpleNamespace(train_step=step)
    program = types.SimpleNamespace(
        step=step,
        mesh=meshes.make_mesh(),
        rules=meshes.rules_for(),
        teacher=teacher,
        base=None,
        reward_model=None if scorer is None else types.SimpleNamespace(params=scorer),
        method=experiment.Method(),
    )
    state = TrainState(jnp.int32(1), None, None, jax.random.PRNGKey(0), None, None)
    found = part_times.part_seconds.__wrapped__(program, state, jnp.ones(8), jnp.arange(8))
    wanted = {"sampling_seconds": 3} | ({"teacher_seconds": 6} if teacher else {})
    assert found == wanted
