"""Runs of SSOPD: rewards of texts, a resume, every kind of teacher, and what is refused."""

import jax
import pytest

from gkd.train.memory_bound import needed
from gkd.train.model_flops import taught_shape
from tests.step_programs import program_of
from tests.train.training import fails, train_whole_and_in_parts

WITNESS = (
    "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "LAMBDA=1.0",
    "ALPHA=0.0", "SAMPLES=4", "ADVANTAGE='group_standardised'", "POLICY_LOSS='grpo'",
    "DIVERGENCE=@divergences.forward_kl", "TEACHER_WEIGHTS='initial'",
    "AUXILIARY_LOSS=@witness.WitnessLoss()", "witness.WitnessLoss.tokens=6",
    "witness.WitnessLoss.threshold=0.1",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(tmp_path, no_evaluations):
    settings = (*WITNESS, "TIME_PARTS=True", "MICROBATCHES=2")
    rows, _, _ = train_whole_and_in_parts(tmp_path, *settings)
    for row in rows:
        assert row["train/mixed_groups"] > 0 and row["train/auxiliary_loss"] > 0
        added = row["train/policy_gradient"] + row["train/auxiliary_loss"]
        assert row["train/loss"] == pytest.approx(added, abs=1e-6)


@pytest.mark.parametrize("weights", ["current", "average"])
def test_the_student_of_the_state_can_be_the_teacher(weights):
    program = program_of(*WITNESS, f"TEACHER_WEIGHTS='{weights}'", devices=jax.devices()[:1])
    metrics = program.describe()["metrics"]
    assert {"auxiliary_loss", "witness_cut", "policy_gradient"} <= set(metrics)
    assert "divergence" not in metrics


def test_the_teacher_scores_one_sample_per_prompt():
    program = program_of(*WITNESS)  # of 16 prompts of 24 tokens, targets of 12
    assert taught_shape(program) == (16, 6, 24 + 12)
    assert taught_shape(program_of(*WITNESS, "ROLLOUT_LENGTH=4")) == (16, 4, 24 + 12)
    long = program_of(*WITNESS, "witness.WitnessLoss.input_length=500")
    more = needed(long) - needed(program)
    # Attention of 16 prompts, not of their 64 samples: the student's were 64 rows of 12 by 24.
    assert more == pytest.approx(4 * 2 * (16 * 500**2 - max(16 * 36**2, 64 * 12 * 24)))


@pytest.mark.parametrize(
    ("settings", "message", "code"),
    [
        (("ALPHA=0.5",), "WitnessLoss needs a DIVERGENCE, of the victims alone", 1),
        (("SAMPLES=1", "ADVANTAGE='batch'"), "SAMPLES is 1, but WitnessLoss needs a wrong", 1),
        (("witness.WitnessLoss.template='{witness}'",), "WitnessLoss.template is '{witness}'", 1),
        (("witness.WitnessLoss.template='{inputs} so {witness}'",), "the vocabulary lacks", 1),
        (("witness.WitnessLoss.input_length=20",), "set WitnessLoss.input_length to more", 1),
        (("witness.WitnessLoss.tokens=0",), "witness.WitnessLoss.tokens is 0", 2),
        (("AUXILIARY_LOSS=@witness.WitnessLoss",), "write @witness.WitnessLoss()", 2),
    ],
)
def test_what_does_not_fit_is_one_line(capfd, tmp_path, settings, message, code):
    run = tmp_path / "run"
    assert message in fails(capfd, run, *WITNESS, *settings, "DRY_RUN=True", code=code)


def test_an_auxiliary_loss_needs_rewards(capfd, tmp_path):
    message = fails(
        capfd, tmp_path / "run", "AUXILIARY_LOSS=@witness.WitnessLoss()", "DRY_RUN=True", code=1
    )
    assert "AUXILIARY_LOSS is added to the policy gradient of rewards" in message
