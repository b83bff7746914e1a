"""Memory per chip: the decoding cache, resident and temporary bytes."""

import jax
import jax.numpy as jnp
import pytest

from gkd.plan import programs
from gkd.plan.memory import cache_bytes
from gkd.program_cost.program_cost import program_memory
from tests.plan.planning import DISTIL, traced


@pytest.mark.parametrize(
    ("model", "rows", "divided"), [(1, 16, 8), (2, 16, 8), (4, 16, 8), (4, 4, 2)]
)
def test_the_cache_is_what_decoding_keeps(model, rows, divided):
    """Against the shapes that `init_cache` makes; two heads do not divide over four chips."""
    program = traced(f"MODEL_PARALLELISM={model}")
    learner, samples = program.student, 3

    def kept(params, tokens):
        encoded = learner.model.encode(params, tokens)
        weights, cache = learner.model.init_cache(params, encoded, 12, samples)
        return cache, [(layer.cross_keys, layer.cross_values) for layer in weights.layers]

    tokens = jax.ShapeDtypeStruct((rows, 24), jnp.int32)
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(kept, learner.shapes, tokens))]
    assert cache_bytes(program, learner, rows, 12, samples) == 4 * sum(sizes) / divided


def test_a_steps_cache_is_of_what_it_writes_at_the_same_time():
    """Two microbatches of eight prompts, three outputs of five tokens each, 24 tokens read."""
    writes = ("LAMBDA=0.5", "MICROBATCHES=2", "SAMPLES=3", "ROLLOUT_LENGTH=5")
    (step,) = programs.step_programs(traced(*DISTIL, *writes)).values()
    assert step.cache == 4 * 2 * 16 * (24 + 3 * 5) * 8 / 8  # keys and values, float32, 8 chips
    (reads,) = programs.step_programs(traced(*DISTIL, "LAMBDA=0.0")).values()
    assert reads.cache == 0


@pytest.mark.parametrize(
    "overrides",
    [pytest.param((), marks=pytest.mark.slow), ("FULLY_SHARDED=True", "MODEL_PARALLELISM=2")],
)
def test_what_is_held_and_temporary_is_what_the_compiler_says(overrides):
    program = traced(*DISTIL, "LAMBDA=1.0", *overrides)
    (planned,) = programs.step_programs(program).values()
    memory = program_memory(planned.lower().compile())
    prompts = 4 * 16 * (24 + 1) / program.mesh.shape["data"]  # and weights; targets are not used
    assert memory.arguments == sum(planned.held.values()) + prompts
    assert memory.arguments <= memory.peak
    assert memory.peak <= memory.arguments + memory.outputs - memory.aliased + memory.temporaries
