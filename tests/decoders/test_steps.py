"""The train step with decoder-only models: its loss by hand, devices and microbatches."""

import jax
import numpy as np
import pytest

from gkd.distill.types import Batch
from gkd.models import teacher_forced_logits
from tests.step_programs import program_of
from tests.train.wiring import parameters, state_of, take_step

SHAPES = ("INPUT_LENGTH=6", "TARGET_LENGTH=5", "BATCH_SIZE=8", "LEARNING_RATE=0.01")
DISTIL = ("DIVERGENCE=@divergences.forward_kl", "TEACHER_MODEL=%STUDENT_MODEL")
GEMMA = "STUDENT_MODEL=@t5gemma.T5GemmaConfig()"


def batch():
    """Eight prompts of one to six tokens, and targets of one to five; the last weighs nothing."""
    rng = np.random.default_rng(0)
    inputs, targets = rng.integers(3, 51, (8, 6)), rng.integers(3, 51, (8, 5))
    lengths = [(6, 5), (1, 1), (2, 3), (5, 2), (3, 4), (4, 5), (6, 2), (6, 3)]
    for row, (prompt, output) in enumerate(lengths):
        inputs[row, prompt:] = 0
        targets[row, output - 1], targets[row, output:] = 1, 0
    weights = np.float32([1, 1, 1, 1, 1, 1, 1, 0])
    return Batch(np.int32(inputs), np.int32(targets), weights)


def stepped(*overrides, devices=1):
    """The program, its parameters, the teacher's, and (state, metrics) after one step."""
    program = program_of(
        *SHAPES, *overrides, gin_file="tests/decoders/tiny.gin", devices=jax.devices()[:devices]
    )
    params = parameters(program.state.abstract.params, 1)
    teacher = parameters(program.teacher.shapes, 2) if program.teacher is not None else None
    state = state_of(program, params=params)
    return program, params, teacher, take_step(program, None, state, batch(), teacher)


@pytest.mark.parametrize("gemma", [False, True])
def test_the_supervised_loss_is_the_forward_kl_of_both_models(gemma):
    """Mean over tokens of a row, then over rows, over the 50 ids that the vocabulary has."""
    overrides = (*([GEMMA] if gemma else []), *DISTIL, "LAMBDA=0.0")
    program, params, teacher, (_, metrics) = stepped(*overrides)
    config, data = program.student.config, batch()
    lengths = np.sum(data.encoder_input_tokens != 0, axis=1)
    arguments = data.encoder_input_tokens, data.decoder_target_tokens, lengths
    both = [
        np.asarray(teacher_forced_logits(config, each, *arguments), np.float64)[..., 1:51]
        for each in (teacher, params)
    ]
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in both)
    kl = np.sum(np.exp(p) * (p - q), axis=-1)
    inside = data.decoder_target_tokens != 0
    rows = np.sum(kl * inside, axis=1) / np.sum(inside, axis=1)
    assert metrics["loss"] == pytest.approx(rows[:7].mean(), rel=1e-4)


@pytest.mark.parametrize("gemma", [False, True])
def test_devices_microbatches_and_stacks_change_nothing(gemma):
    """On-policy, two samples of each prompt: the same tokens, so the same update."""
    overrides = (*([GEMMA] if gemma else []), *DISTIL, "LAMBDA=1.0", "SAMPLES=2")
    _, before, _, (alone, metrics) = stepped(*overrides)
    _, _, _, (together, found) = stepped(*overrides, "MICROBATCHES=2", "REMAT=True", devices=4)
    assert found["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    assert found["target_length"] == metrics["target_length"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), together.params, alone.params
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, alone.params)
    assert min(jax.tree.leaves(moved["decoder"]["layers_0"])) > 1e-3
