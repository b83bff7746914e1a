"""Batches of several lengths: every program is compiled once, and resumes are exact."""

import json

import jax
import numpy as np
import pytest

from gkd.data import pipeline
from gkd.evaluate.evaluation import host_batch
from gkd.train.model_flops import useful_flops
from tests.step_programs import program_of
from tests.train.training import DISTIL, train_whole_and_in_parts

# Problems of one to three operations: 9, 12 or 15 tokens of 24.
MIXED = (
    "tasks.arithmetic.minimum_steps=1", "LENGTH_BUCKETS=(12,)", "EVALUATE_EVERY=0",
    "CHECKPOINT_EVERY=5",
)  # fmt: skip


@pytest.mark.parametrize(
    "method",
    [(), pytest.param(DISTIL, marks=pytest.mark.slow)],
    ids=["fine-tuning", "distillation"],
)
def test_a_run_of_several_lengths_continues_bit_for_bit(
    tmp_path, teacher, no_evaluations, capfd, method
):
    settings = (*MIXED, *method, *((f"TEACHER='{teacher}'",) if method else ()))
    rows, whole, _ = train_whole_and_in_parts(tmp_path, *settings, steps=10)
    assert "compiling the step, inputs of " in capfd.readouterr().err
    assert len({row["data/padding"] for row in rows}) > 1
    assert json.loads((whole / "summary.json").read_text())["recompilations"] == 0


def test_a_row_learns_the_same_whatever_it_is_padded_to():
    """The loss of a step on shorter arrays is that of the same rows in the longest."""
    program = program_of(*MIXED, read=True)
    batches = pipeline.training_batches(
        program.task, "train", 16, 24, 12, 0, buckets=(12,), buckets_targets=False
    )
    step, found = program.compile(), []
    host = next(one for one in batches if one["encoder_input_tokens"].shape[1] == 12)
    short = host_batch(host)
    longer = np.pad(short.encoder_input_tokens, ((0, 0), (0, 12)))
    for batch in (short, short.replace(encoder_input_tokens=longer)):
        state, metrics = step(program.state.make(), None, batch)
        found.append((jax.device_get(state.params), float(metrics["loss"][0])))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found[0][0], found[1][0])


def test_shorter_batches_are_less_work():
    program = program_of(*MIXED)
    inputs = jax.ShapeDtypeStruct((16, 12), "int32")
    short = program.batch.replace(encoder_input_tokens=inputs)
    assert useful_flops(program, 0, program.batch) == useful_flops(program, 0)
    assert useful_flops(program, 0, short) < 0.75 * useful_flops(program, 0)
