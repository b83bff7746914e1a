"""A run of several processes on loopback: the curve of one process, a lost process, a new start."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gkd.checkpoints.params import restore_params
from gkd.cli import supervisor
from gkd.parallel import processes
from gkd.runs.metrics_log import read_metrics
from gkd.runs.signals import EXIT_LOST, EXIT_STOPPED
from tests.paths import REPOSITORY, TINY
from tests.train.training import saved_steps, wait_for_step

SETTINGS = (
    "DIVERGENCE=@divergences.generalized_jsd", "BETA=0.1", "LAMBDA=0.5", "TRAIN_STEPS=30",
    "EVALUATE_EVERY=10", "experiment.Execution.tensorboard=False",
)  # fmt: skip
HEARTBEAT = int(os.environ.get(processes.HEARTBEAT, "20"))  # more where processes are paused


def launch(count, devices, model_dir, *overrides):
    """A job of so many processes, each with so many devices; its process group is its own."""
    values = [f'MODEL_DIR="{model_dir}"', *SETTINGS, *overrides]
    environment = {**os.environ, "XLA_FLAGS": "", "GKD_HEARTBEAT_SECONDS": str(HEARTBEAT)}
    return subprocess.Popen(
        ["bash", "launch/local_multiprocess.sh", str(count), str(devices), "train",
         f"--gin_file={TINY}", *(f"--gin.{value}" for value in values)],
        cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process, code=0):
    try:
        _, errors = process.communicate(timeout=600)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, errors
    return errors


def assert_same_curve(got, want):
    """Every number of every row, up to the order in which devices add."""
    rows, wanted = read_metrics(got), read_metrics(want)
    assert [row["step"] for row in rows] == [row["step"] for row in wanted]
    for row, expected in zip(rows, wanted, strict=True):
        assert row == pytest.approx(expected, rel=2e-4, abs=2e-5, nan_ok=True), row["step"]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)  # noqa: E731
    jax.tree.map(close, restore_params(got), restore_params(want))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    sft = ("DIVERGENCE=None", "BETA=None", "LAMBDA=0.0", "TRAIN_STEPS=4")
    finish(launch(1, 8, folder, *sft))
    return f'TEACHER="{folder}"'


@pytest.fixture(scope="module")
def alone(tmp_path_factory, teacher):
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(launch(1, 8, folder, teacher))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("MODEL_PARALLELISM=2", "FULLY_SHARDED=True"),
        ("MODEL_PARALLELISM=4",),  # over two processes, which have the same rows
    ],
)
def test_four_processes_have_the_curve_of_one(overrides, tmp_path, teacher, alone):
    finish(launch(4, 2, tmp_path / "run", teacher, *overrides))
    assert_same_curve(tmp_path / "run", alone)
    assert len((tmp_path / "run/launches.jsonl").read_text().splitlines()) == 1


SELF_DISTILLATION = (
    "DIVERGENCE=@divergences.forward_kl", "BETA=None", "LAMBDA=1.0", "SAMPLES=4",
    "TEACHER_WEIGHTS='initial'", "LORA=@lora.LoRA()", "STUDENT_MODEL=None", "LEARNING_RATE=0.03",
    "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "ALPHA=0.0",
    "ADVANTAGE='group_standardised'", "POLICY_LOSS='grpo'", "RATIO_CLIP=0.2",
    "UPDATES_PER_ROLLOUT=2", "AUXILIARY_LOSS=@witness.WitnessLoss()",
    "witness.WitnessLoss.threshold=0.05", "tasks.arithmetic.minimum_steps=1",
    "LENGTH_BUCKETS=(12,)", "TRAIN_STEPS=8", "EVALUATE_EVERY=0",
)  # fmt: skip


@pytest.mark.slow
def test_two_processes_self_distil_as_one(tmp_path, teacher):
    """Adapters, groups with their witnesses, rewards from texts, batches of several lengths."""
    student = teacher.replace("TEACHER", "STUDENT")
    for processes_, devices in ((1, 8), (2, 4)):
        finish(launch(processes_, devices, tmp_path / str(processes_), student, *SELF_DISTILLATION))
    assert_same_curve(tmp_path / "2", tmp_path / "1")
    rows = [row for row in read_metrics(tmp_path / "1") if "train/mixed_groups" in row]
    assert len(rows) == 8 and sum(row["train/mixed_groups"] for row in rows) > 0
    assert len({row["data/padding"] for row in rows}) > 1


IN_PARTS = (
    "DIVERGENCE=None", "BETA=None", "LAMBDA=0.0", "INPUT_LENGTH=48", "STEPS=10",
    "TARGET_LENGTH=48", "tasks.arithmetic.minimum_steps=1", "BATCH_SIZE=32", "TRAIN_STEPS=8",
    "EVALUATE_EVERY=0",
)  # fmt: skip


@pytest.mark.slow
def test_two_processes_lay_out_their_rows_in_the_parts_of_one(tmp_path):
    for processes_, devices in ((1, 8), (2, 4)):
        finish(launch(processes_, devices, tmp_path / str(processes_), *IN_PARTS))
    assert_same_curve(tmp_path / "2", tmp_path / "1")
    finish(launch(1, 8, tmp_path / "whole", *IN_PARTS, "LENGTH_BUCKETS=None"))
    paddings = [
        np.mean(
            [row["data/padding"] for row in read_metrics(tmp_path / run) if "data/padding" in row]
        )
        for run in ("2", "whole")
    ]
    assert paddings[0] < paddings[1] - 0.03


@pytest.mark.slow
def test_a_lost_process_ends_the_job_and_the_next_start_continues(tmp_path, teacher, alone):
    """SIGKILL of the third of four; then two with four devices each go on, on another mesh."""
    run = tmp_path / "run"
    process = launch(4, 2, run, teacher)
    wait_for_step(process, run, 18)
    _kill_child(process.pid, 2)
    begin = time.monotonic()
    errors = finish(process, code=EXIT_LOST)
    assert time.monotonic() - begin < HEARTBEAT + 30
    # Whichever comes first: a collective meets a closed connection, or the heartbeat is missed.
    noticed = f"which the others notice within {HEARTBEAT} s"
    assert "process 2 of the job was lost (" in errors or noticed in errors
    assert "start all of them again" in errors and "Traceback" not in errors
    assert max(saved_steps(run)) == 16
    errors = finish(launch(2, 4, run, teacher, "MODEL_PARALLELISM=2", "FULLY_SHARDED=True"))
    assert "resumed at step 16 of 30" in errors
    assert_same_curve(run, alone)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_saving(tmp_path, teacher, alone):
    run = tmp_path / "run"
    process = launch(2, 4, run, teacher, "MODEL_PARALLELISM=8", "FULLY_SHARDED=True")
    wait_for_step(process, run, 5)
    _kill_child(process.pid, 1, signal.SIGTERM)
    errors = finish(process, code=EXIT_STOPPED)
    assert errors.count("gkd: stopped: ") == 2
    finish(launch(1, 8, run, teacher))
    assert_same_curve(run, alone)


LOCAL_TEXT = (
    "TASK=@tasks.local_text()", "BEST_METRIC='rouge1'", "TRAIN_STEPS=40000", "EVALUATE_EVERY=0",
    "tasks.local_text.files={'train': 'rows.jsonl', 'validation': 'rows.jsonl'}",
    "tasks.local_text.vocabulary=@vocabularies.arithmetic()",
)  # fmt: skip


def launch_each(folder, each, *overrides):
    """Two processes, each with its own overrides and environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        processes.COORDINATOR: f"127.0.0.1:{port}", processes.PROCESSES: "2", "XLA_FLAGS": "",
        processes.HEARTBEAT: str(HEARTBEAT), "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    values = [f'MODEL_DIR="{folder / "run"}"', "experiment.Execution.tensorboard=False", *overrides]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "gkd", "train", f"--gin_file={TINY}",
             *(f"--gin.{value}" for value in (*values, *own))],
            cwd=REPOSITORY, env={**os.environ, **job, processes.PROCESS_ID: str(number), **more},
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )
        for number, (own, more) in enumerate(each)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "data", "words", "code"),
    [
        (["LEARNING_RATE=1e-5"], "same", "LEARNING_RATE 0.003 in process 0, 1e-05 here", 1),
        (["LEARNIN_RATE=1e-5"], "same", "nothing uses the macro LEARNIN_RATE", 2),
        ([], "other", "training data ", 1),
        ([], "absent", "rows.jsonl", 1),
    ],
)
def test_what_only_one_process_has_ends_all_in_one_line(own, data, words, code, tmp_path):
    for name, count in (("same", 64), ("other", 65)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text('{"input": "1", "target": "1"}\n' * count)
    each = [([], {"GKD_DATA": str(tmp_path / "same")}), (own, {"GKD_DATA": str(tmp_path / data)})]
    first, second = launch_each(tmp_path, each, *LOCAL_TEXT)
    error = finish(second, code)
    begin = time.monotonic()
    other = finish(first, code)
    assert time.monotonic() - begin < HEARTBEAT
    line = error.strip().splitlines()[-1]
    assert line.startswith("gkd: error: ") and words in line, error
    said = line.removeprefix("gkd: error: ")
    line = other.strip().splitlines()[-1]
    assert line == f"gkd: error: process 1 of the job failed, and process 0 ends with it: {said}"


def _kill_child(group, number, with_signal=signal.SIGKILL):
    """Signals the process that works as this number, and where it is killed its watcher too."""
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            variables = path.read_bytes().split(b"\0")
            if f"GKD_PROCESS_ID={number}".encode() in variables:
                watched = any(name.startswith(b"GKD_JOINED=") for name in variables)
                if watched and os.getpgid(int(path.parent.name)) != group:
                    os.kill(int(path.parent.name), with_signal)


# What needs no other process


def test_a_job_is_recognised_by_its_environment(monkeypatch):
    for name in (processes.COORDINATOR, "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert not processes.is_multiprocess(os.environ)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    assert not processes.is_multiprocess(os.environ)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert processes.is_multiprocess(os.environ)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    monkeypatch.setenv(processes.COORDINATOR, "127.0.0.1:1")
    assert processes.is_multiprocess(os.environ)


@pytest.fixture
def job_settings(monkeypatch):
    """The supervisor sets them: they are as before after a test."""
    for name in (processes.COORDINATOR, processes.PROCESSES, processes.PROCESS_ID):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--coordinator=h:1 --process_id=0", "set a number of processes, and this one's below it"),
        ("--coordinator=h:1 --processes=2", "set a number of processes, and this one's below it"),
        ("--coordinator h:1 --processes 2 --process_id 2", "GKD_PROCESS_ID '2'"),
        ("--coordinator=h:1 --processes=two --process_id=0", "GKD_PROCESSES is 'two'"),
        ("--processes=2 --process_id=0", "GKD_COORDINATOR is '': use HOST:PORT"),
        ("--coordinator=h --processes=2 --process_id=0", "GKD_COORDINATOR is 'h': use HOST:PORT"),
        ("--coordinator=h:x --processes=2 --process_id=0", "'h:x': use HOST:PORT of process 0"),
        ("--coordinator=h:99999 --processes=2 --process_id=0", "'h:99999': use HOST:PORT"),
        ("--process_id", "GKD_COORDINATOR is '': use HOST:PORT"),
    ],
)
def test_half_a_description_of_a_job_is_one_line(options, message, capfd, job_settings):
    assert supervisor.main(["train", "--gin_file=none.gin", *options.split()]) == 1
    error = capfd.readouterr().err
    assert error.startswith("gkd: error: ") and message in error
    assert error.count("\n") == 1


def test_a_process_that_finds_no_other_says_so(monkeypatch, capfd, job_settings):
    """Process 1 of two, and nobody listens: its start ends in C++, the watcher explains it."""
    monkeypatch.setenv(processes.START, "3")
    options = ["--coordinator=127.0.0.1:9", "--processes=2", "--process_id=1"]
    assert supervisor.main(["train", "--gin_file=none.gin", *options]) == EXIT_LOST
    error = capfd.readouterr().err.splitlines()[-1]
    assert error == (
        "gkd: error: process 1 was ended by SIGABRT before it found the others: they must all "
        "start within 3 s (GKD_START_SECONDS), and reach process 0's port (GKD_COORDINATOR is "
        "127.0.0.1:9)"
    )


def test_a_port_in_use_is_one_error(monkeypatch, capfd, job_settings):
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", 0))
        other.listen()
        options = [f"--coordinator=127.0.0.1:{other.getsockname()[1]}", "--processes=1"]
        code = supervisor.main(["train", "--gin_file=none.gin", *options, "--process_id=0"])
    assert code == 1
    error = capfd.readouterr().err
    assert "another program of this host listens on that port" in error
    assert error.startswith("gkd: error: ") and error.count("\n") == 1


def test_a_heartbeat_is_whole_seconds(monkeypatch):
    monkeypatch.delenv(processes.HEARTBEAT, raising=False)
    assert processes.heartbeat_seconds(os.environ) == 100
    monkeypatch.setenv(processes.HEARTBEAT, "1.5")
    with pytest.raises(ValueError, match=r"GKD_HEARTBEAT_SECONDS is '1.5'"):
        processes.heartbeat_seconds(os.environ)
