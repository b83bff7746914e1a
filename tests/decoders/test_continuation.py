"""Prefill and continuation: who sees what, and the same on one device and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.sampling import sample
from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.models.scoring import score_tokens
from gkd.parallel import mesh as meshes
from tests.decoders.models import PATTERNED, TINY, parameters_of

PROMPTS = jnp.array([[3, 4, 7, 8], [-1, -1, 9, 0], [6, -1, -1, -1], [2, 2, 5, -1]])


def test_the_last_token_of_a_prompt_is_the_first_input():
    encoded = jax.jit(TINY.build().encode)(parameters_of(TINY), PROMPTS)
    assert encoded.start_tokens.tolist() == [8, 0, 6, 5]
    assert encoded.mask.tolist() == [
        [True, True, True, False], [False, False, True, False],
        [False, False, False, False], [True, True, False, False],
    ]  # fmt: skip


@pytest.mark.parametrize("config", [TINY, PATTERNED], ids=["plain", "gemma"])
def test_the_place_at_which_a_text_is_divided_changes_nothing(config):
    """Prompt and output of 7 tokens: the same states wherever the prompt ends."""
    model, params = config.build(), parameters_of(config)
    text = jnp.array([[3, 4, 7, 8, 2, 6, 9]])
    states = []
    for end in (1, 3, 5):

        @jax.jit
        def last_two(params, end=end):
            encoded = model.encode(params, text[:, :end])
            return score_tokens(model, params, encoded, text[:, end:]).hidden[:, -2:]

        states.append(last_two(params))
    np.testing.assert_allclose(states[1], states[0], atol=1e-5)
    np.testing.assert_allclose(states[2], states[0], atol=1e-5)


MERGED = T5GemmaConfig(PATTERNED, PATTERNED, version=2)


@pytest.mark.parametrize(
    ("config", "model_axis"),
    [(PATTERNED, 1), (PATTERNED, 2), (PATTERNED, 4), (MERGED, 2), (MERGED, 4)],
    ids=["1", "2", "4", "T5Gemma 2-2", "T5Gemma 2-4"],
)
def test_samples_and_scores_on_a_mesh_are_those_of_one_device(config, model_axis):
    """Two key heads: 2 divides them, 4 does not, and then rows are spread over both axes."""
    params, prompts = parameters_of(config), jnp.concatenate([PROMPTS, PROMPTS + 1 - 1])
    mesh = meshes.make_mesh(model=model_axis)
    sharding = meshes.model_sharding(mesh)

    def run(model, params, prompts):
        encoded = model.encode(params, prompts)
        samples = sample(
            model, params, encoded, jax.random.PRNGKey(1), max_length=6, valid=jnp.ones(40, bool),
            samples=2,
        )  # fmt: skip
        return samples.tokens, score_tokens(model, params, encoded, samples.tokens).hidden

    wanted = jax.jit(lambda *args: run(config.build(), *args))(params, prompts)
    boxed = jax.eval_shape(config.build().init, jax.random.PRNGKey(0))
    rules = meshes.rules_of_model(meshes.rules_for(), config.sizes.divided_heads, mesh)
    placed = jax.device_put(params, meshes.parameter_shardings(mesh, boxed, rules))
    rows = jax.device_put(prompts, meshes.batch_sharding(mesh))
    got = jax.jit(lambda *args: run(config.build(sharding), *args))(placed, rows)
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_allclose(got[1], wanted[1], atol=3e-5)
    kernel = placed["decoder"]["layers_0"]["self_attention"]["key"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (model_axis != 2)


def test_the_memory_of_long_texts_grows_with_their_length_and_not_its_square():
    """Scores of 16 rows and heads, of 1024 outputs for 2048 keys, take 134 MB."""
    config = dataclasses.replace(TINY, num_heads=8, stacked_layers=True)

    def memory(length):
        tokens = jax.ShapeDtypeStruct((2, length), "int32")
        model = config.build()

        def total(params, inputs, targets):
            encoded = model.encode(params, inputs)
            return jnp.sum(model.decode_hidden(params, encoded, targets).last)

        shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0))
        compiled = jax.jit(jax.grad(total)).lower(shapes, tokens, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    half, whole = memory(512), memory(1024)
    assert whole < 2.2 * half and whole < 134 * 0.75
