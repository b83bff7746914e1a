"""Batches in parts learn what whole batches learn, step by step, and a step is less work."""

import re

import jax
import numpy as np
import pytest

from gkd.data.part_lengths import PartSizes
from gkd.evaluate.evaluation import host_batch
from gkd.parallel import mesh as meshes
from gkd.runs.metrics_log import read_metrics
from gkd.train.batch_layout import part_sizes, saves_padding
from gkd.train.train import _training_data
from tests.compilation import devices
from tests.paths import TINY
from tests.plan.planning import DISTIL
from tests.step_programs import program_of
from tests.teacher_prompts import OVERRIDES
from tests.train.training import train

# Problems of one to ten operations: 9 to 36 tokens of 48.
MIXED = ("STEPS=10", "tasks.arithmetic.minimum_steps=1", "INPUT_LENGTH=48")
DECODER_ONLY = "tests/decoders/tiny.gin"
# Updates that are proportional to the gradient: a small one's sign does not matter.
EXACT = (*MIXED, "optimizers.adamw.eps=1.0", "LEARNING_RATE=1.0")
TAUGHT = (
    "DIVERGENCE=@divergences.forward_kl", "TEACHER_WEIGHTS='initial'",
    *(text.replace("length=37", "length=64") for text in OVERRIDES),
)  # fmt: skip
REWARDED = (
    "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "ALPHA=0.0",
    "LAMBDA=1.0", "SAMPLES=2", "ADVANTAGE='group_standardised'", "POLICY_LOSS='grpo'",
    "RATIO_CLIP=0.2", "UPDATES_PER_ROLLOUT=2",
)  # fmt: skip


def steps(overrides, buckets, gin_file=TINY, count=3):
    """A run's first steps: the metrics of each, the parameters at last, the parts of each batch."""
    settings = (*EXACT, *overrides, f"LENGTH_BUCKETS={buckets!r}")
    program = program_of(*settings, gin_file=gin_file, read=True)
    data, _ = _training_data(program)
    step, state, rows, parts = program.compile(), program.state.make(), [], []
    frozen = program.frozen_teacher and program.frozen_teacher.params
    for _ in range(count):
        batch = host_batch(next(data))
        parts.append((batch.input_parts, batch.teacher_input_parts))
        state, metrics = step(state, frozen, meshes.place_batch(batch, program.mesh))
        rows.append({name: float(total) for name, (total, _) in metrics.items()})
    return rows, jax.device_get(state.params), parts


@pytest.mark.parametrize(
    ("overrides", "count", "parts"),
    [
        pytest.param((), 1, 4, id="fine-tuning"),
        pytest.param(
            (*TAUGHT, "LAMBDA=0.5", "MIXING='example'", "SAMPLES=2", "MICROBATCHES=2",
             "BATCH_SIZE=32"), 8, 2, id="distillation",
        ),
        pytest.param(REWARDED, 1, 4, id="rewards", marks=pytest.mark.slow),
        pytest.param(
            (*TAUGHT, "LAMBDA=1.0", "MODEL_PARALLELISM=2", "FULLY_SHARDED=True"), 8, 4,
            id="sharded", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_parts_change_no_step(overrides, count, parts):
    with devices(count):
        (got, got_params, used), (want, want_params, none) = (
            steps(overrides, buckets) for buckets in ("parts", None)
        )
    check_alike(got, got_params, want, want_params)
    assert {len(own.lengths) for own, _ in used if own} == {parts}
    assert TAUGHT[0] not in overrides or any(teacher for _, teacher in used)
    assert set(none) == {(None, None)}


@pytest.mark.slow
@pytest.mark.parametrize("gemma", [False, True])
def test_parts_change_no_step_of_a_decoder_only_model(gemma):
    overrides = (*TAUGHT, "LAMBDA=0.5", "MIXING='example'", "SAMPLES=2")
    if gemma:
        overrides = (*overrides, "STUDENT_MODEL=@t5gemma.T5GemmaConfig()")
    with devices(1):
        (*got, used), (*want, _) = (
            steps(overrides, buckets, DECODER_ONLY) for buckets in ("parts", None)
        )
    check_alike(*got, *want)
    assert all(own and teacher for own, teacher in used)


def check_alike(got, got_params, want, want_params):
    for row, expected in zip(got, want, strict=True):
        assert row == pytest.approx(expected, rel=2e-4, abs=1e-5)
    assert got[0]["gradient_norm"] > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4),
        got_params, want_params,
    )  # fmt: skip


def sizes_of(*overrides, on=8):
    return part_sizes(program_of(*MIXED, *overrides, devices=jax.devices()[:on]))


def test_parts_divide_over_the_mesh_or_there_are_none():
    assert sizes_of("BATCH_SIZE=32") == PartSizes(4, 8)
    assert sizes_of("BATCH_SIZE=32", "MICROBATCHES=2") == PartSizes(2, 8)
    assert sizes_of("BATCH_SIZE=24") == PartSizes(1, 8)
    # Two heads on four chips: rows over all eight chips, so a part needs eight of them.
    assert sizes_of("BATCH_SIZE=16", "MODEL_PARALLELISM=4") == PartSizes(2, 8)
    assert sizes_of("BATCH_SIZE=16", "MODEL_PARALLELISM=2") == PartSizes(4, 4)


def test_what_saves_padding_follows_the_run():
    replay = ("REPLAY=@replay.Replay()", *DISTIL, "LAMBDA=0.0")
    for overrides, saves in (
        (("BATCH_SIZE=32",), True), (("BATCH_SIZE=32", "INPUT_LENGTH=32"), False),
        (("BATCH_SIZE=24",), False), (("LENGTH_BUCKETS=(12,)", "BATCH_SIZE=24"), True),
        (("LENGTH_BUCKETS=None",), False), (("BATCH_SIZE=32", *replay), False),
    ):  # fmt: skip
        assert saves_padding(program_of(*MIXED, *overrides)) == saves, overrides


@pytest.mark.slow
def test_a_run_in_parts_continues_without_them(tmp_path, no_evaluations, capfd):
    """Its log is that of a run that has none all the time, but for the padding."""
    settings = (*MIXED, "EVALUATE_EVERY=0", "CHECKPOINT_EVERY=3")
    with devices(1):
        for run, buckets, count in (
            ("mixed", "'parts'", 3), ("mixed", None, 6), ("plain", None, 6),
        ):  # fmt: skip
            options = (f"TRAIN_STEPS={count}", f"LENGTH_BUCKETS={buckets}")
            assert train(tmp_path / run, *settings, *options) == 0
    assert re.search("inputs of 48, .* and targets of 12 tokens", capfd.readouterr().err)
    mixed, plain = (
        [row for row in read_metrics(tmp_path / run) if "train/loss" in row]
        for run in ("mixed", "plain")
    )
    paddings, whole = ([row.pop("data/padding") for row in rows] for rows in (mixed, plain))
    assert paddings[3:] == whole[3:] and max(paddings[:3]) < min(whole) - 0.1
    assert len(mixed) == len(plain) == 6
    for row, expected in zip(mixed, plain, strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-4)
