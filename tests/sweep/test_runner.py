"""Cells that run, crash, wait, and are stopped."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from gkd.configuration.gin_files import REPOSITORY
from gkd.runs import lease, lease_owner
from tests.sweep.sweeping import launches
from tests.waiting import wait_until

# The fixture's runner, in a process that can be killed.
PYTHON = sys.executable  # the fixture replaces it
RUNNER = """
import sys
from gkd.cli import command_line
from gkd.evaluate import evaluate
from gkd.sweep import cells
from gkd.train import train
from tests.paths import TINY
cells.sys.executable = "./python"
sys.exit(command_line.main(["sweep", "--gin_file=sweep.gin"]))
"""


def test_cells_run_in_order_once_and_a_failed_one_stops_no_other(grid, capfd):
    pathlib.Path("fail").write_text("out/sft/1")
    assert grid() == 1
    errors = capfd.readouterr().err
    assert errors.splitlines()[-1] == (
        "gkd: error: 1 of 4 cells failed: sft/1 (exit code 1); the same command tries them again"
    )
    order = ["out/sft/0", "out/sft/1", "out/jsd_0.1/0", "out/jsd_0.1/1"]
    assert launches() == order
    pathlib.Path("fail").unlink()
    # A cell that was complete at fewer steps, or whose summary is truncated, is not complete.
    path = pathlib.Path("out/jsd_0.1/0/summary.json")
    path.write_text('{"steps": 39, "evaluation": {}}')
    pathlib.Path("out/jsd_0.1/1/summary.json").write_text('{"steps"')
    assert grid() == 0
    assert launches() == [*order, *order[1:]]
    assert "[1/4] sft/0: complete" in capfd.readouterr().err


def test_a_crashed_cell_is_started_again_and_no_other(grid, capfd):
    pathlib.Path("crash").write_text("out/sft/1")
    assert grid("RETRIES=2") == 1
    assert launches().count("out/sft/1") == 3 and len(launches()) == 6
    errors = capfd.readouterr().err
    assert "[2/4] sft/1: exit code -9, restarting" in errors
    assert "sft/1 (exit code -9)" in errors.splitlines()[-1]
    assert any("sft/1" in line and line.rstrip().endswith("3") for line in errors.splitlines())


def test_cells_run_side_by_side(grid):
    """Every cell waits until three have begun: one after the other, none would end."""
    pathlib.Path("together").write_text("3")
    assert grid("MAX_PARALLEL=3", "OVERRIDES=['BATCH_SIZE=8']") == 0
    assert len(launches()) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_running_cell_after_it_saved(grid, number, capfd):
    pathlib.Path("wait").touch()

    def send():
        wait_until(pathlib.Path("started").exists)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert grid() == 75
    thread.join()
    assert pathlib.Path("saved").exists() and launches() == ["out/sft/0"]
    assert f"gkd: stopped: {number.name} in [1/4] sft/0" in capfd.readouterr().err


def test_a_killed_runner_takes_its_cells_along_and_the_next_starts_each_once(grid):
    """The issue's own case: cells went on alone, and the next runner started second copies."""
    pathlib.Path("wait").touch()
    runner = subprocess.Popen(
        [PYTHON, "-c", RUNNER], cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    wait_until(pathlib.Path("started").exists)
    runner.kill()
    runner.wait()
    wait_until(pathlib.Path("saved").exists)  # the cell was asked to stop
    pathlib.Path("wait").unlink()
    assert launches() == ["out/sft/0"]
    assert grid() == 0  # at once: the runner is known to be dead
    assert launches() == ["out/sft/0", "out/sft/0", "out/sft/1", "out/jsd_0.1/0", "out/jsd_0.1/1"]
    assert not list(pathlib.Path("out").glob("*lease*"))


def owned(place, process):
    """Lets a process of this host hold the lease of `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    started = lease_owner._start_of(process.pid)[0]
    owner = lease_owner.Owner.this_process()
    owner = dataclasses.replace(owner, pid=process.pid, started=started)
    lease.file_of(place, 1).write_bytes(owner.record(0))


def test_a_second_runner_is_refused_in_a_line_that_names_the_first(grid, capfd):
    other = subprocess.Popen(["sleep", "900"])
    owned(pathlib.Path("out/sweep"), other)
    assert grid() == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("gkd: error: the sweep's directory out is in use by another launch")
    assert f"process {other.pid}, since" in line and launches() == []
    other.kill()
    other.wait()
    assert grid() == 0


def test_a_cell_that_another_process_runs_is_waited_for(grid, capfd):
    other = subprocess.Popen(["sleep", "900"])
    owned(pathlib.Path("out/sft/1/run"), other)

    def finish():  # the other process completes the cell and ends, once the rest has run
        wait_until(lambda: len(launches()) >= 3)
        pathlib.Path("out/sft/1/summary.json").write_text('{"steps": 30, "evaluation": {}}')
        other.kill()
        other.wait()

    thread = threading.Thread(target=finish)
    thread.start()
    assert grid() == 0
    thread.join()
    assert launches() == ["out/sft/0", "out/jsd_0.1/0", "out/jsd_0.1/1"]
    errors = capfd.readouterr().err
    owner = f"host {lease_owner.socket.gethostname()}"
    assert f"[2/4] sft/1: waits, its output is in use by {owner}" in errors
    assert "[2/4] sft/1: complete" in errors


def test_a_cell_whose_other_process_dies_is_started(grid):
    other = subprocess.Popen(["sleep", "900"])
    owned(pathlib.Path("out/sft/1/run"), other)

    def end():  # the others have run, and this one was passed over
        wait_until(lambda: len(launches()) >= 3)
        other.kill()
        other.wait()

    thread = threading.Thread(target=end)
    thread.start()
    assert grid() == 0
    thread.join()
    assert launches() == ["out/sft/0", "out/jsd_0.1/0", "out/jsd_0.1/1", "out/sft/1"]
