"""The entailment reward: its inputs against list code, its probability against a plain T5."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gkd.distill.reward_models import Entailment
from gkd.models.t5 import T5, T5Config, as_seq2seq
from gkd.parallel import mesh as meshes

PREMISE, HYPOTHESIS, PREFIX = (50, 51), (60, 61, 62), (40, 41)
REWARD = Entailment(PREMISE, HYPOTHESIS, 7, 20, PREFIX)
PROMPTS = [
    [40, 41, 10, 11, 12, 1],
    [13, 14, 1],  # without the prefix
    [40, 41, *range(10, 21), 1],  # fits with a short sample, not with a long one
    [40, 41, 1],  # nothing but the prefix
    [40, 42, 15, 1],  # begins like the prefix
    [40, 41, *range(10, 27)],  # cut before its EOS
    [1],
    [16, 40, 41, 1],  # the prefix inside
]
SAMPLES = [
    [30, 31, 1], [32, 1], [1], [30, 31, 32, 33, 34], [35, 1], [36, 36, 36, 1],
    [30, 31, 32, 33, 1], [37, 1], [38, 1], [1], [33, 1], [30, 31, 32, 33, 34], [34, 1],
    [35, 31, 1], [39, 1], [30, 1],
]  # fmt: skip


def padded(rows, length):
    array = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return jnp.array(array)


def listed(prompt, sample, length, hypothesis_first=False):
    """One row, with Python's lists."""
    document = prompt[2:] if prompt[:2] == list(PREFIX) else list(prompt)
    document = [i for i in document if i != 1]
    sample = [i for i in sample if i != 1]
    document = document[: length - len(PREMISE) - len(HYPOTHESIS) - len(sample) - 1]
    parts = [[*PREMISE, *document], [*HYPOTHESIS, *sample]]
    row = sum(reversed(parts) if hypothesis_first else parts, []) + [1]
    return row + [0] * (length - len(row))


@pytest.mark.parametrize("hypothesis_first", [False, True])
def test_inputs_are_those_of_plain_lists(hypothesis_first):
    reward = dataclasses.replace(REWARD, hypothesis_first=hypothesis_first)
    got = jax.jit(reward.inputs)(padded(PROMPTS, 19), padded(SAMPLES, 5))
    wanted = [
        listed(PROMPTS[i // 2], sample, 20, hypothesis_first) for i, sample in enumerate(SAMPLES)
    ]
    np.testing.assert_array_equal(got, wanted)


def test_empty_pieces_and_a_prompt_shorter_than_the_prefix():
    bare = Entailment((), (), 7, 12, (40, 41, 42, 43, 44, 45))
    got = bare.inputs(padded([[10, 11, 1]], 4), padded([[30, 1]], 2))
    np.testing.assert_array_equal(got, [[10, 11, 30, 1, *[0] * 8]])


def test_a_length_without_room_for_the_document_is_refused():
    least = len(PREMISE) + len(HYPOTHESIS) + 5 + 1
    with pytest.raises(ValueError, match=f"input_length is {least}, .* 5 tokens take {least}"):
        dataclasses.replace(REWARD, input_length=least).inputs(
            padded(PROMPTS, 19), padded(SAMPLES, 5)
        )


CONFIG = T5Config(
    vocab_size=72, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
    num_decoder_layers=1,
)  # fmt: skip


def test_the_score_is_the_probability_of_the_entailment_token_on_any_devices():
    params = jax.jit(lambda: nn.meta.unbox(as_seq2seq(CONFIG).init(jax.random.key(1))))()
    rows = [listed(PROMPTS[i // 2], sample, 20) for i, sample in enumerate(SAMPLES)]
    start = jnp.zeros((16, 1), jnp.int32)
    logits = jax.jit(T5(CONFIG).apply)({"params": params}, jnp.array(rows), start)
    logits = np.asarray(logits, np.float64)[:, 0]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    wanted = odds[:, 7] / odds.sum(-1)
    assert wanted.max() > 1.5 * wanted.min()

    mesh = meshes.make_mesh()
    sharding = jax.NamedSharding(mesh, PartitionSpec("data"))
    prompts = jax.device_put(padded(PROMPTS, 19), sharding)
    samples = jax.device_put(padded(SAMPLES, 5), sharding)
    model = as_seq2seq(CONFIG, meshes.model_sharding(mesh))
    score = jax.jit(lambda *arrays: REWARD.score(model, *arrays))
    got = score(params, prompts, samples)
    assert got.dtype == jnp.float32
    assert got.sharding.is_equivalent_to(sharding, 1)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
