"""The settings that may change while a run continues; a sweep's comparison is tested there."""

import pathlib

import gin
import pytest

from gkd.cli import command_line
from gkd.runs.run_directory import config_bindings
from gkd.runs.setting_changes import of_bindings, of_checkpoints, of_launches, settings_of
from tests.paths import TINY

BEFORE = (
    'MODEL_DIR="runs/a"', 'TEACHER="runs/t"', "DIVERGENCE=@divergences.generalized_jsd",
    "BETA=0.1", "LAMBDA=0.5",
)  # fmt: skip


def bindings(*overrides):
    """The bindings that a launch with these overrides records."""
    options = [f"--gin.{value}" for value in (*BEFORE, *overrides)]
    command_line.configure(command_line.parse_arguments(["train", f"--gin_file={TINY}", *options]))
    return config_bindings(gin.config_str())


@pytest.fixture(scope="module")
def before():
    return bindings()


@pytest.mark.parametrize(
    "override",
    [
        "TRAIN_STEPS=80", "LOG_EVERY=7", "EVALUATE_EVERY=7", "CHECKPOINT_EVERY=7",
        "MODEL_PARALLELISM=2", "FULLY_SHARDED=True", "MICROBATCHES=2", "REMAT=True",
        "STUDENT_STACKED=True", "TEACHER_STACKED=True", "EVALUATION_BATCH_SIZE=8",
        "STALL_SECONDS=5", "PROFILE_STEPS=(1, 2)", "TIME_PARTS=True", "BEST_METRIC='rouge1'",
        "experiment.Schedule.keep_last=3", "experiment.Execution.tensorboard=False",
        "ALLOW_CHANGES=True",
        "experiment.Evaluation.sample_rows=2", "EVALUATION_BEAMS=4", "CHECKPOINT_STEP=8",
        "MODEL_DIR='runs/b'", "TEACHER='runs/../runs/t'", "LAMBDA=0.50", "ALPHA=1",
        "experiment.Schedule.keep_best=1",  # its default
    ],
)  # fmt: skip
def test_execution_and_length_may_change(before, override):
    assert of_launches(before, bindings(override)) == []


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("LAMBDA=0.0", "LAMBDA 0.5 → 0.0"),
        ("BETA=0.9", "BETA 0.1 → 0.9"),
        (
            "DIVERGENCE=@divergences.forward_kl",
            "DIVERGENCE @divergences.generalized_jsd → @divergences.forward_kl",
        ),
        ("TEACHER='runs/u'", "TEACHER 'runs/t' → 'runs/u'"),
        ("TEACHER_STEP=3", "TEACHER_STEP None → 3"),
        ("STUDENT='runs/s'", "STUDENT None → 'runs/s'"),
        ("BATCH_SIZE=8", "BATCH_SIZE 16 → 8"),
        ("LEARNING_RATE=1e-5", "LEARNING_RATE 0.003 → 1e-05"),
        ("WARMUP_STEPS=2", "WARMUP_STEPS 0 → 2"),
        ("MAX_GRADIENT_NORM=1.0", "MAX_GRADIENT_NORM None → 1.0"),
        ("OPTIMIZER=@optimizers.adafactor", "OPTIMIZER @optimizers.adamw → @optimizers.adafactor"),
        ("optimizers.adamw.weight_decay=0.5", "weight_decay "),
        ("INPUT_LENGTH=64", "INPUT_LENGTH "),
        ("TARGET_LENGTH=10", "TARGET_LENGTH 12 → 10"),
        ("ROLLOUT_LENGTH=4", "ROLLOUT_LENGTH None → 4"),
        ("SAMPLES=2", "SAMPLES 1 → 2"),
        ("MIXING='example'", "MIXING 'batch' → 'example'"),
        ("TEMPERATURE=2.0", "TEMPERATURE 1.0 → 2.0"),
        ("SAMPLING_TEMPERATURE=0.7", "SAMPLING_TEMPERATURE 1.0 → 0.7"),
        ("SAMPLING_TOP_P=0.9", "SAMPLING_TOP_P 1.0 → 0.9"),
        ("NORMALISATION='token'", "NORMALISATION 'sequence' → 'token'"),
        ("DROPOUT_RATE=0.1", "DROPOUT_RATE 0.0 → 0.1"),
        ("SEED=1", "SEED 0 → 1"),
        ("STUDENT_DTYPE='bfloat16'", "STUDENT_DTYPE None → 'bfloat16'"),
        ("SOLUTION='equations'", "SOLUTION 'totals' → 'equations'"),
        ("tasks.arithmetic.minimum_steps=2", "minimum_steps None → 2"),
        ("EVALUATION_EXAMPLES=3", "EVALUATION_EXAMPLES None → 3"),
        ("REPLAY=@replay.Replay()", "REPLAY None → @replay.Replay()"),
        ("t5.T5Config.mlp_dim=48", "mlp_dim 32 → 48"),
        ("experiment.Batches.split='test'", "train_split 'train' → 'test'"),
    ],
)
def test_method_data_and_optimisation_may_not(before, override, change):
    changes = of_launches(before, bindings(override))
    assert len(changes) == 1 and changes[0].startswith(change), changes


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("EVALUATE_EVERY=7", "EVALUATE_EVERY 20 → 7"),
        ("TRAIN_STEPS=77", "TRAIN_STEPS 40 → 77"),
        ("EVALUATION_BATCH_SIZE=77", "EVALUATION_BATCH_SIZE None → 77"),
    ],
)
def test_a_replay_follows_the_evaluations_and_the_number_of_steps(before, override, change):
    replay = "REPLAY=@replay.Replay()", "LAMBDA=0.0"
    assert of_launches(bindings(*replay), bindings(*replay, override)) == [change]
    assert of_launches(before, bindings(override)) == []


def test_without_gin_files_nothing_is_compared(before):
    assert of_launches({}, before) == [] == of_launches(before, {})


@pytest.mark.parametrize("verb", ["launches", "sweep"])
def test_a_record_without_a_later_parameter_means_what_that_version_did(verb):
    """Earlier versions always read FLAN's \\n in TSV cells as a newline, and had no `escapes`."""
    flan = str(pathlib.Path(TINY).parents[2] / "configs/runs/flan/base.gin")
    command = command_line.parse_arguments(["train", f"--gin_file={flan}"])
    command_line.configure(command)
    now = config_bindings(gin.config_str())
    without = {key: value for key, value in now.items() if not key.endswith(".escapes")}
    earlier = {key: value for key, value in without.items() if "allow_changes" not in key}
    settings = settings_of(command_line.read_configuration(command), "train")

    def changes(before):
        if verb == "sweep":
            return of_bindings(before, settings, "train")
        return of_launches(before, now)

    assert "tasks.instructions.escapes" in now
    assert changes(now) == changes(earlier) == []
    assert changes(without) == ["escapes False → True"]


def evaluated(*overrides):
    """The command of an evaluation, its settings, and the bindings that its result records."""
    options = [f"--gin.{value}" for value in overrides]
    command = command_line.parse_arguments(["evaluate", f"--gin_file={TINY}", *options])
    command_line.configure(command)
    return settings_of(command_line.read_configuration(command), "evaluate"), config_bindings(
        gin.config_str()
    )


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        (["MODEL_DIR='a'"], ["MODEL_DIR='b'"], []),  # a sweep whose directory was renamed
        (["MODEL_DIR='a'"], ["MODEL_DIR='a'", "%='t'"], ["checkpoint 'a' → 't'"]),
        (["MODEL_DIR='a'", "%='t'"], ["MODEL_DIR='b'", "%='t'"], []),
        (["MODEL_DIR='a'", "%='t'"], ["MODEL_DIR='a'", "%='u'"], ["checkpoint 't' → 'u'"]),
        (["MODEL_DIR='a'", "%='a'"], ["MODEL_DIR='a'"], []),
    ],
)
def test_another_model_that_is_measured_is_a_change(before, now, changes):
    recorded, settings = (
        evaluated(*(text.replace("%", "evaluate.evaluate.checkpoint") for text in texts))
        for texts in (before, now)
    )
    assert of_bindings(recorded[1], settings[0], "evaluate") == changes


def test_a_checkpoint_has_changed_where_its_content_is_another(tmp_path):
    (tmp_path / "hashes.json").write_text("{}")  # `printf '{}' | sha256sum` begins with 44136fa…
    there, digest = str(tmp_path), "44136fa355b3678a"
    recorded = {
        "STUDENT": (there, digest), "TEACHER": (there, "0" * 16), "REWARD_MODEL": (there, None),
        "MODEL": (f"{there}/moved", digest), "SOURCE": ("google/tiny@0123", None),
    }  # fmt: skip
    assert of_checkpoints(recorded) == [f"TEACHER {there} has been trained again"]
