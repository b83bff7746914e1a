"""Whole runs through the command line: interrupted, damaged, misconfigured, and evaluated."""

import hashlib
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from gkd.checkpoints.params import restore_params
from gkd.cli import command_line
from gkd.runs.metrics_log import read_metrics
from gkd.runs.monitor import Monitor
from gkd.runs.signals import EXIT_STOPPED
from gkd.train.train import _warn_of_another_dtype
from tests.compilation import devices
from tests.paths import TINY
from tests.train.training import (
    DISTIL,
    fails,
    launch,
    saved_steps,
    train,
    wait_for_step,
)

pytestmark = pytest.mark.usefixtures("one_device")

RUN = (*DISTIL, "TRAIN_STEPS=24", "EVALUATE_EVERY=12")


@pytest.fixture(scope="module")
def settings(teacher):
    return (*RUN, f'TEACHER="{teacher}"')


@pytest.fixture(scope="module")
def uninterrupted(folder, settings, one_device):
    assert train(folder / "whole", *settings) == 0
    return folder / "whole"


def assert_same_run(got, want):
    assert (got / "metrics.jsonl").read_text() == (want / "metrics.jsonl").read_text()
    assert (got / "samples.jsonl").read_text() == (want / "samples.jsonl").read_text()
    jax.tree.map(np.testing.assert_array_equal, restore_params(got), restore_params(want))


def kill(run, settings, step, number, **options):
    """Sends a real process a signal in this step; returns what it had printed."""
    process = launch(run, *settings, **options)
    wait_for_step(process, run, step)
    process.send_signal(number)
    _, errors = process.communicate()
    expected = EXIT_STOPPED if number == signal.SIGTERM else -number
    assert process.returncode == expected, errors
    return errors


def test_a_killed_run_continues_bit_for_bit(folder, settings, uninterrupted, monkeypatch, capfd):
    """SIGKILL of a process around a save, then SIGTERM of this one: as if nothing had been."""
    rows = read_metrics(uninterrupted)
    mixed = {row["train/on_policy"] for row in rows if "train/on_policy" in row}
    assert mixed == {0.0, 1.0}, "the coin must have fallen both ways for this to show anything"
    broken = folder / "broken"
    kill(broken, settings, 16, signal.SIGKILL)
    begins = Monitor.begins

    def terminated(self, what, step=None):
        begins(self, what, step)
        if what == "step" and step == 19:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "begins", terminated)
        assert train(broken, *settings) == EXIT_STOPPED
    errors = capfd.readouterr().err
    assert "resumed at step" in errors and "gkd: stopped: SIGTERM at step 19" in errors
    assert train(broken, *settings) == 0
    assert "resumed at step 19 of 24" in capfd.readouterr().err
    assert_same_run(broken, uninterrupted)
    launches = (broken / "launches.jsonl").read_text().splitlines()
    assert len(launches) == 3


@pytest.mark.slow
def test_a_process_killed_at_any_time_continues_bit_for_bit(folder, teacher):
    """As users run it: SIGKILL before the first save, SIGKILL around a save, SIGTERM."""
    settings = (*DISTIL, f'TEACHER="{teacher}"')
    whole, broken = folder / "process", folder / "killed_processes"
    errors = []
    for step, number in ((3, signal.SIGKILL), (16, signal.SIGKILL), (26, signal.SIGTERM)):
        errors.append(kill(broken, settings, step, number, optimized=True))
    assert "gkd: stopped: SIGTERM at step" in errors[-1]
    for run in (whole, broken):
        process = launch(run, *settings, optimized=True)
        errors.append(process.communicate()[1])
        assert process.returncode == 0, errors[-1]
    assert "resumed at step" in errors[-1]
    assert_same_run(broken, whole)
    launches = (broken / "launches.jsonl").read_text().splitlines()
    assert len(launches) == 4


def test_a_flipped_bit_is_reported_and_the_checkpoint_before_is_used(
    folder, settings, uninterrupted, capfd, caplog
):
    damaged = folder / "damaged"
    shutil.copytree(uninterrupted, damaged)
    assert sorted(saved_steps(damaged))[-2:] == [16, 24]
    victim = max(
        (path for path in (damaged / "checkpoints/24").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    assert train(damaged, *settings) == 0
    errors = capfd.readouterr().err
    assert "is damaged" in caplog.text
    assert "resumed at step 16 of 24" in errors
    assert_same_run(damaged, uninterrupted)


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_started_again_changes_nothing(settings, uninterrupted):
    before = {path: path.read_bytes() for path in uninterrupted.glob("*.*") if path.is_file()}
    assert len(before) > 5
    assert train(uninterrupted, *settings) == 0
    assert before == {path: path.read_bytes() for path in before}


def test_another_method_is_refused_and_leaves_the_record(
    folder, settings, uninterrupted, capfd, no_evaluations
):
    """A finished run, and the same one stopped at step 16: not a byte changes."""
    half = folder / "half"
    shutil.copytree(uninterrupted, half)
    shutil.rmtree(half / "checkpoints/24")
    capfd.readouterr()
    for run in (half, uninterrupted):
        before = files_of(run)
        message = fails(capfd, run, *settings, "LAMBDA=1.0", "TRAIN_STEPS=28")
        assert f"{run} was trained with other settings: LAMBDA 0.5 → 1.0:" in message
        assert "--gin.ALLOW_CHANGES=True" in message
        message = fails(capfd, run, *settings, "LAMBDA=1.0", "BATCH_SIZE=8", "DRY_RUN=True")
        assert "BATCH_SIZE 16 → 8; LAMBDA 0.5 → 1.0" in message
        assert "TRAIN_STEPS is 8" in fails(capfd, run, *settings, "TRAIN_STEPS=8")
        message = fails(capfd, run, *settings[:-1], f'TEACHER="{run}/checkpoints"')
        assert f"MODEL_DIR {run} is the directory of TEACHER {run}/checkpoints," in message
        assert files_of(run) == before
    assert train(half, *settings, "LAMBDA=1.0", "ALLOW_CHANGES=True", "TRAIN_STEPS=17") == 0
    assert "LAMBDA 0.5 → 1.0" in capfd.readouterr().err
    launches = [json.loads(line) for line in (half / "launches.jsonl").read_text().splitlines()]
    assert [launch["bindings"]["LAMBDA"] for launch in launches] == ["0.5", "1.0"]
    assert json.loads((half / "summary.json").read_text())["spans"] == [
        {"first_step": 1, "last_step": 16, "launch": 0},
        {"first_step": 17, "last_step": 17, "launch": 1},
    ]


def test_what_a_run_leaves_behind(uninterrupted):
    rows = read_metrics(uninterrupted)
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(1, 25))
    assert [row["step"] for row in rows if "evaluation/exact_match" in row] == [0, 12, 24]
    assert [row["step"] for row in rows if "teacher/exact_match" in row] == [0]
    evaluated = [row for row in rows if "evaluation/on_policy_jsd_0.1" in row]
    assert all(0 <= row["evaluation/on_policy_jsd_0.1"] < 1 for row in evaluated)
    table = json.loads((uninterrupted / "samples.jsonl").read_text().splitlines()[-1])
    assert set(table["rows"][0]) == {"prompt", "student", "teacher", "reference"}
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["steps"] == 24
    assert summary["compilations"] > 2 and summary["recompilations"] == 0
    embeddings = 64 * 16 * 2  # the table and the head
    assert summary["parameters"] > embeddings
    assert "BETA = 0.1" in (uninterrupted / "operative_config.gin").read_text()
    assert list((uninterrupted / "tensorboard").glob("events*"))


def test_a_row_is_the_mean_since_the_last_also_after_a_resume(
    folder, settings, uninterrupted, no_evaluations
):
    """λ = 0.5 logged every 4 steps, saved every 3: rows are means of the rows of single steps."""
    single = {row["step"]: row for row in read_metrics(uninterrupted) if "train/loss" in row}
    settings = (*settings, "LOG_EVERY=4", "CHECKPOINT_EVERY=3", "TRAIN_STEPS=9")
    run, resumed = folder / "means", folder / "means_resumed"
    assert train(run, *settings) == 0
    rows = [row for row in read_metrics(run) if "train/loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 9]
    for row, steps in zip(rows, ((1, 2, 3, 4), (5, 6, 7, 8), (9,)), strict=True):
        for name in ("train/loss", "train/on_policy", "train/target_length", "train/gradient_norm"):
            want = np.mean([single[step][name] for step in steps])  # each of 16 rows
            assert row[name] == pytest.approx(want, rel=1e-6), name
    shares = [row["train/on_policy"] for row in rows[:2]]
    assert any(0 < share < 1 for share in shares), shares
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoints/9")
    assert train(resumed, *settings) == 0  # from step 6, amid a row
    assert_same_run(resumed, run)


def test_evaluate_measures_the_best_step_beside_its_teacher(uninterrupted, teacher, capfd):
    code = command_line.main(
        [
            "evaluate",
            f"--gin_file={TINY}",
            f'--gin.MODEL_DIR="{uninterrupted}"',
            f'--gin.TEACHER="{teacher}"',
        ]
    )
    out = capfd.readouterr().out
    assert code == 0
    result = json.loads((uninterrupted / "evaluation-validation.json").read_text())
    assert result["examples"] == 24
    best = max(
        row["evaluation/exact_match"]
        for row in read_metrics(uninterrupted)
        if "evaluation/exact_match" in row and row["step"] in (12, 24)
    )
    for name in ("student", "teacher"):
        hashes = pathlib.Path(result[name]["step_folder"], "hashes.json").read_bytes()
        assert result[name]["digest"] == hashlib.sha256(hashes).hexdigest()[:16]
    measured = result["metrics"]
    assert measured["student"]["greedy"]["exact_match"] == pytest.approx(best)
    teacher_rows = [row for row in read_metrics(uninterrupted) if "teacher/exact_match" in row]
    assert measured["teacher"]["greedy"]["exact_match"] == teacher_rows[0]["teacher/exact_match"]
    assert set(measured["divergences"]) >= {"on_policy_forward_kl", "reference_reverse_kl"}
    assert "| prompt | student | teacher | reference |" in out


def test_bad_settings_get_one_line_and_a_way_out(folder, teacher, capfd):
    here = f'TEACHER="{teacher}"'
    new = folder / "never"
    capfd.readouterr()
    message = fails(capfd, new, *DISTIL)
    assert "set TEACHER" in message
    message = fails(capfd, new, *DISTIL, f'TEACHER="{folder}/nowhere"')
    assert "nowhere" in message
    with devices(8):
        message = fails(capfd, new, *DISTIL, here, "BATCH_SIZE=30")
    assert "a batch of 30 does not divide over 8 devices" in message
    byte_level = "tasks.arithmetic.vocabulary=@vocabularies.byte_level()"
    message = fails(capfd, new, *DISTIL, here, byte_level, "t5.T5Config.vocab_size=384")
    assert "has another vocabulary than task" in message
    message = fails(capfd, new, *DISTIL, here, "BETA=1.0")
    assert "forward_kl" in message or "reverse_kl" in message
    message = fails(capfd, new, here, "DIVERGENCE=@divergences.forward_kl", "BETA=0.9")
    assert "BETA is 0.9 and DIVERGENCE forward_kl" in message
    message = fails(capfd, new, here)
    assert "TEACHER is set but DIVERGENCE is not" in message
    message = fails(capfd, new, here, "DIVERGENCE='forward_kl'", code=2)
    assert "write @divergences.forward_kl" in message
    message = fails(capfd, new, "BEST_METRIC='blue'", "TRAIN_STEPS=1")
    assert "BEST_METRIC is 'blue'" in message and "exact_match" in message
    for setting in ("MICROBATCHES=0", "SEED=-1", "DROPOUT_RATE=1.0", "TEMPERATURE=0"):
        assert setting.split("=")[0] in fails(capfd, new, setting, code=2)
    message = fails(capfd, new, *DISTIL, here, "LAMBDA=1.5", code=2)
    assert "LAMBDA is 1.5" in message
    message = fails(capfd, new, *DISTIL, here, "ROLLOUT_LENGTH=13")
    assert "ROLLOUT_LENGTH is 13 and TARGET_LENGTH 12" in message
    message = fails(capfd, new, *DISTIL, here, f'STUDENT="{teacher}/."', "STUDENT_MODEL=None")
    assert "TEACHER and STUDENT are both" in message
    message = fails(capfd, new, "LAMBDA=0.5")
    assert "teaches nothing" in message
    message = fails(capfd, new, "STUDENT_MODEL=None")
    assert "STUDENT_MODEL" in message
    message = fails(capfd, new, "t5.T5Config.vocab_size=40")
    assert "STUDENT has 40 ids" in message
    message = fails(capfd, new, "LAMDA=1", code=2)
    assert "LAMDA" in message and "LAMBDA" in message
    message = fails(capfd, new, "train.train.stpes=1", code=2)
    assert "stpes" in message
    assert not saved_steps(new)


def test_a_missing_macro_is_named(capfd):
    assert command_line.main(["train", f"--gin_file={TINY}"]) == 2
    error = capfd.readouterr().err.strip()
    assert "MODEL_DIR" in error and "\n" not in error


def test_a_checkpoint_of_another_shape_is_refused_and_kept(folder, teacher, capfd):
    copy = folder / "another_shape"
    shutil.copytree(teacher, copy)
    capfd.readouterr()
    message = fails(capfd, copy, "TRAIN_STEPS=8", "t5.T5Config.mlp_dim=48")
    assert "mlp_dim 32 → 48" in message
    before = files_of(copy)
    message = fails(capfd, copy, "TRAIN_STEPS=8", "t5.T5Config.mlp_dim=48", "ALLOW_CHANGES=True")
    assert "does not fit this run" in message and "mlp" in message
    jax.tree.map(np.testing.assert_array_equal, restore_params(copy), restore_params(teacher))
    assert files_of(copy) == before


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    folder, teacher, capfd, no_evaluations
):
    run = folder / "nan"
    shutil.copytree(teacher, run)
    good = restore_params(run)
    capfd.readouterr()
    message = fails(
        capfd, run, "TRAIN_STEPS=60", "LEARNING_RATE=1e30", "CHECKPOINT_EVERY=1",
        "ALLOW_CHANGES=True",
        "experiment.Schedule.stop_after_skipped=3",
    )  # fmt: skip
    assert "not finite in 3 updates in a row" in message and "LEARNING_RATE" in message
    assert 4 in saved_steps(run)
    for step in saved_steps(run):  # also of a skipped update: it changed nothing
        jax.tree.map(np.testing.assert_array_equal, restore_params(run, step=step), good)


def test_every_way_to_split_the_work_goes_through_the_command_line(folder, teacher, no_evaluations):
    run = folder / "split"
    settings = (
        f'STUDENT="{teacher}/checkpoints/4"', "STUDENT_MODEL=None", f'TEACHER="{teacher}"',
        "DIVERGENCE=@divergences.reverse_kl", "LAMBDA=1.0", "MICROBATCHES=2",
        "MODEL_PARALLELISM=2", "FULLY_SHARDED=True", "DROPOUT_RATE=0.1",
        "TEACHER_DTYPE='bfloat16'", "OPTIMIZER=@optimizers.adafactor", "MAX_GRADIENT_NORM=1.0",
        "WARMUP_STEPS=2", "COOLDOWN_STEPS=2", "TRAIN_STEPS=6", "EVALUATE_EVERY=3",
    )  # fmt: skip
    with devices(4):
        assert train(run, *settings) == 0
    rows = [row for row in read_metrics(run) if "train/loss" in row]
    rates = [row["train/learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, [0, 1.5e-3, 3e-3, 3e-3, 3e-3, 1.5e-3], rtol=1e-6)
    assert all(np.isfinite(row["train/loss"]) and row["train/on_policy"] == 1 for row in rows)
    assert set(saved_steps(run)) >= {3, 6}, "what was evaluated is saved, so the best can be kept"
    names = {str(path.relative_to(run)) for path in (run / "checkpoints").rglob("*")}
    assert not any("teacher" in name for name in names), "the teacher is not checkpointed"
    saved = restore_params(run)
    embedding = saved["token_embedder"]["embedding"]
    assert embedding.shape == (64, 16) and embedding.dtype == np.float32
    pinned = json.loads((run / "teacher.json").read_text())["step_folder"]
    assert pinned.endswith("teacher/checkpoints/4")


def test_a_longer_run_does_not_report_the_shorter_ones_summary(folder, teacher, no_evaluations):
    copy = folder / "longer"
    shutil.copytree(teacher, copy)
    assert train(copy, "TRAIN_STEPS=5") == 0  # one step: no time a step, yet a new summary
    assert json.loads((copy / "summary.json").read_text())["steps"] == 5


def test_a_run_without_its_checkpoints_is_refused_and_its_metrics_are_kept(folder, teacher, capfd):
    copy = folder / "bare"
    shutil.copytree(teacher, copy, ignore=shutil.ignore_patterns("checkpoints"))
    before = (copy / "metrics.jsonl").read_bytes()
    line = fails(capfd, copy, "TRAIN_STEPS=5")
    assert f"MODEL_DIR {copy} has the record of a run of 4 steps, but no checkpoint" in line
    assert before and (copy / "metrics.jsonl").read_bytes() == before


def test_what_does_not_fit_is_cut_weighs_nothing_and_is_counted(
    folder, tmp_path, capfd, no_evaluations
):
    rows = [{"input": "Tom has 3 pens.", "target": "3 " * 12 + "#### 3"}] * 8
    rows += [{"input": "", "target": "1"}] * 4 + [{"input": "Tom has 4 pens.", "target": "4"}] * 20
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = folder / "cut"
    assert train(
        run,
        "TASK=@tasks.local_text()",
        f"tasks.local_text.files={{'train': '{path}', 'validation': '{path}'}}",
        "tasks.local_text.vocabulary=@vocabularies.arithmetic()",
        "BEST_METRIC='rouge1'",
        "BATCH_SIZE=32",
        "TRAIN_STEPS=2",
    ) == 0  # fmt: skip
    errors = capfd.readouterr().err
    assert "of 32 rows, 8 targets cut, 4 empty examples" in errors
    row = next(row for row in read_metrics(run) if "data/targets_cut" in row)
    assert (row["data/targets_cut"], row["data/empty_examples"]) == (8, 4)


def test_a_resume_in_another_dtype_is_said(uninterrupted, caplog):
    """A run of float32 on a CPU goes on in bfloat16 on a TPU, unless STUDENT_DTYPE is set."""
    _warn_of_another_dtype(uninterrupted, "float32")
    assert not caplog.messages
    _warn_of_another_dtype(uninterrupted, "bfloat16")
    (message,) = caplog.messages
    assert "in float32, and from here on is in bfloat16" in message
    assert "STUDENT_DTYPE='float32' with ALLOW_CHANGES=True" in message
