"""A process killed at any moment leaves whole steps, and folders that the next start removes."""

import logging
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from gkd.checkpoints.store import CheckpointStore

PROGRAM = pathlib.Path(__file__).with_name("saving_program.py")
REPOSITORY = PROGRAM.parents[2]
SIZE = 1 << 21


def run_until_killed(directory, moment: str, seconds: float | None = None) -> list[str]:
    """Runs the program until it kills itself, or so many seconds after it has restored."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(directory), moment],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    first = process.stdout.readline()
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    output, errors = process.communicate()
    watchdog.cancel()
    assert first, errors
    assert process.returncode == -9, errors
    assert not errors, errors
    return [first.strip(), *output.splitlines()]


def last_saved(lines: list[str]) -> int:
    return int([line for line in lines if line.startswith("saved")][-1].split()[1])


def restore_intact(directory, caplog):
    """Restores; every array must be of the restored step, without a report of damage."""
    store = CheckpointStore(directory)
    restored = store.restore({"params": jnp.zeros(SIZE)})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert np.all(np.asarray(restored.state["params"]) == restored.step)
    assert restored.data_state == str(restored.step).encode()
    store.save(restored.step + 9, restored.state)  # waits until unfinished folders are removed
    store.close()
    names = {path.name for path in pathlib.Path(directory).iterdir()}
    assert names == {str(restored.step), str(restored.step + 9)}
    return restored.step


@pytest.mark.parametrize("moment, newest", [("unhashed", 3), ("hashed", 3), ("half deleted", 3)])
def test_killed_at_a_chosen_moment(tmp_path, caplog, moment, newest):
    run_until_killed(tmp_path, moment)
    assert restore_intact(tmp_path, caplog) == newest


def test_killed_at_random_moments(tmp_path, caplog):
    moments = random.Random(0)
    finished = 0
    for _ in range(3):
        lines = run_until_killed(tmp_path, "never", moments.uniform(0.3, 0.8))
        restored = int(lines[0].split()[1])
        assert restored >= finished  # nothing that was saved is lost
        finished = last_saved(lines)
    assert finished > 0
    assert restore_intact(tmp_path, caplog) >= finished
