"""What reaches a whole run and `evaluate` beyond the step: data, seeds, evaluations, the share."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from gkd.checkpoints.params import restore_params
from gkd.cli import command_line
from gkd.data import pipeline, tasks
from gkd.distill.types import Batch
from gkd.evaluate.divergence_meter import DivergenceMeter
from gkd.evaluate.evaluation import evaluation_key
from gkd.models.t5 import as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.runs.metrics_log import read_metrics
from tests.train import step_by_hand, wiring
from tests.train.step_by_hand import ByHand

METRIC, SEED, STEPS = "on_policy_forward_kl", 7, 4
REVERSE = {"DIVERGENCE": "@divergences.reverse_kl"}


def run(verb, settings):
    values = [f"--gin.{value}" for value in wiring.overrides(settings)]
    assert command_line.main([verb, f"--gin_file={wiring.GIN}", *values]) == 0


def arithmetic():
    return tasks.arithmetic(
        steps=3, solution="totals", rows={"train": 64, "validation": 16, "test": 16}
    )


@pytest.fixture(scope="module")
def keys():
    """The keys of all measurements between two models, as they come."""
    seen, measure = [], DivergenceMeter.measure

    def recorded(self, params, teacher_params, batches, key):
        seen.append(tuple(np.asarray(key).tolist()))
        return measure(self, params, teacher_params, batches, key)

    one = meshes.make_mesh(devices=jax.devices()[:1])  # eight compile for twice as long
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DivergenceMeter, "measure", recorded)
        patch.setattr(meshes, "make_mesh", lambda **_: one)
        yield seen


@pytest.fixture(scope="module")
def student(tmp_path_factory, keys):
    """A run with a replay whose share rises by half of what is left; and its keys."""
    folder = tmp_path_factory.mktemp("runs")
    common = {
        "EVALUATION_EXAMPLES": 9,
        "CHECKPOINT_EVERY": 1,
        "experiment.Execution.tensorboard": False,
        "LOG_EVERY": 1,
    }
    teacher = {"TEACHER_MODEL": None, "STUDENT_MODEL": "@teacher/t5.T5Config()"}
    run("train", common | teacher | {"MODEL_DIR": str(folder / "teacher"), "TRAIN_STEPS": 2})
    settings = common | REVERSE | {
        "MODEL_DIR": str(folder / "student"), "TEACHER": str(folder / "teacher"),
        "TEACHER_MODEL": None, "TEACHER_STEP": 1, "REPLAY": "@replay.Replay()",
        "replay.Replay.capacity": 7,
        "replay.Replay.increase": 0.3, "replay.Replay.metric": METRIC, "SEED": SEED,
        "TRAIN_STEPS": STEPS, "EVALUATE_EVERY": 1, "experiment.Schedule.keep_last": 9,
        "WARMUP_STEPS": 2, "COOLDOWN_STEPS": 1,
    }  # fmt: skip
    run("train", settings)
    return folder / "student"


def logged(path, name):
    return {row["step"]: row[name] for row in read_metrics(path) if name in row}


def test_the_share_of_a_replay_follows_the_evaluations(student):
    losses, shares = logged(student, f"evaluation/{METRIC}"), logged(student, "train/student_share")
    assert sorted(losses) == [0, 1, 2, 3, 4] and sorted(shares) == [1, 2, 3, 4]
    wanted, share = {}, 0.0
    for step in range(1, STEPS + 1):
        if step > 1 and losses[step - 1] > losses[step - 2]:
            share = min(1.0, share + 0.3)
        wanted[step] = share
    assert shares == pytest.approx(wanted)
    assert losses[1] > losses[0] and wanted[STEPS] > wanted[2], "it rose first and later"


def test_every_evaluation_has_a_key_of_its_own(student, keys):
    """Its samples are new each time, and never those of a training step."""
    measured = keys[: STEPS + 1]
    base = jax.random.PRNGKey(SEED)
    steps = {tuple(np.asarray(jax.random.fold_in(base, i)).tolist()) for i in range(1000)}
    assert len(set(measured)) == STEPS + 1
    assert not set(measured) & (steps | {tuple(np.asarray(base).tolist())})
    assert (evaluation_key(SEED) != evaluation_key(SEED + 1)).any()


def test_the_first_step_is_that_of_the_seeds_parameters_and_rows(student):
    batches = pipeline.training_batches(arithmetic(), "train", 6, 6, 5, SEED)
    rows = next(batches)
    data = Batch(*(rows[name] for name in (
        "encoder_input_tokens", "decoder_target_tokens", "example_weights"
    )))  # fmt: skip
    params = nn.meta.unbox(as_seq2seq(wiring.STUDENT).init(jax.random.PRNGKey(SEED)))
    teacher = restore_params(student.parent / "teacher", step=1)
    later = restore_params(student.parent / "teacher")
    expected = ByHand(REVERSE, params, teacher, data=data)
    assert logged(student, "train/loss")[1] == pytest.approx(expected.loss(), rel=1e-3)
    other = nn.meta.unbox(as_seq2seq(wiring.STUDENT).init(jax.random.PRNGKey(0)))
    for pair in ((other, teacher), (params, later)):
        assert abs(ByHand(REVERSE, *pair, data=data).loss() / expected.loss() - 1) > 2e-3
    # An evaluation on the way measures the first batch of the validation split.
    rows = pipeline.evaluation_batches(arithmetic(), "validation", 6, 6, 5).batches[0]
    data = Batch(rows["encoder_input_tokens"], rows["decoder_target_tokens"], np.ones(6))
    measured = logged(student, "evaluation/reference_reverse_kl")[0]
    assert measured == pytest.approx(ByHand(REVERSE, params, teacher, data=data).loss(), rel=1e-3)
    rates = logged(student, "train/learning_rate")
    assert rates == pytest.approx({1: 0.0, 2: 0.05, 3: 0.1, 4: 0.1})


def test_evaluate_measures_what_its_macros_name(student, keys):
    """Another split, step, seed and reward than the run's own; divergences by hand."""
    keys.clear()
    settings = {
        "MODEL_DIR": str(student), "TEACHER": str(student), "TEACHER_STEP": 3,
        "TEACHER_MODEL": None, "CHECKPOINT_STEP": 2, "EVALUATION_SPLIT": "test",
        "EVALUATION_EXAMPLES": 5, "EVALUATION_BATCH_SIZE": 4, "EVALUATION_BEAMS": 2,
        "EVALUATION_LENGTH_PENALTY": 0.3, "SEED": 9, "REWARD": "@reward_functions.rouge",
        "reward_functions.rouge.name": "rouge1",
    }  # fmt: skip
    run("evaluate", settings)
    assert keys == [tuple(np.asarray(evaluation_key(9)).tolist())]
    result = json.loads((student / "evaluation-test.json").read_text())
    assert (result["examples"], result["batch_size"], result["seed"]) == (5, 4, 9)
    assert result["decoding"]["beam_2"]["length_penalty"] == 0.3
    lines = [json.loads(line) for line in (student / "evaluation-test.jsonl").open()]
    rows = pipeline.evaluation_batches(arithmetic(), "test", 5, 6, 5)
    assert [line["reference"] for line in lines] == list(rows.targets[:5])
    first = rows.batches[0]
    prompts, tokens = first["encoder_input_tokens"], first["decoder_target_tokens"]
    params, teacher = (restore_params(student, step=step) for step in (2, 3))
    logits = step_by_hand.raw_logits(wiring.STUDENT, params, prompts, tokens)
    log_q = step_by_hand._chosen(step_by_hand.log_softmax(logits), tokens, first=0)
    for line, values, row in zip(lines, log_q, tokens, strict=True):
        scored = line["student"]["reference_log_probs"]
        np.testing.assert_allclose(scored, values[: int((row > 0).sum())], atol=1e-4)
    data = Batch(prompts, tokens, np.ones(5, np.float32))
    settings = {"DIVERGENCE": "@divergences.forward_kl"}
    divergence = ByHand(settings, params, teacher, data=data, configs=(wiring.STUDENT,) * 2)
    measured = result["metrics"]
    assert measured["divergences"]["reference_forward_kl"] == pytest.approx(
        divergence.loss(), rel=1e-3
    )
    texts = [line["student"]["greedy"][0]["text"] for line in lines]
    pairs = zip(texts, rows.targets[:5], strict=True)
    reward = 100 * np.mean([step_by_hand._rouge1(*pair) for pair in pairs])
    assert measured["student"]["greedy"]["reward"] == pytest.approx(reward)
