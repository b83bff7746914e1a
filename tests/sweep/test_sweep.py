"""Sweeps: cells against commands written by hand, runs by a stand-in for `python`, the table."""

import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

from gkd.configuration.gin_files import REPOSITORY
from gkd.runs import lease, lease_owner
from gkd.sweep import table
from tests.paths import TINY
from tests.sweep.sweeping import launches, rows_of

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


def test_the_list_is_one_exact_command_a_cell(grid, capsys):
    assert grid("ACTION='list'", "OVERRIDES=['BATCH_SIZE=8']") == 0
    train = f"train --gin_file={TINY} --gin_file=configs/methods/"
    divergence = "--gin.DIVERGENCE=@divergences.generalized_jsd --gin.BETA=0.1"
    divergence += """ '--gin.TEACHER='"'"'it is a teacher'"'"''"""
    sft, jsd = f"{train}sft.gin", f"{train}gkd.gin {divergence}"
    zero, one = "--gin.SEED=0", "--gin.SEED=1 --gin.TRAIN_STEPS=30"

    def place(name):
        return f"""--gin.BATCH_SIZE=8 '--gin.MODEL_DIR='"'"'out/{name}'"'"''"""

    want = [
        f"{sft} {zero} {place('sft/0')}",
        f"{sft} {one} {place('sft/1')}",
        f"{jsd} {zero} {place('jsd_0.1/0')}",
        f"{jsd} {one} {place('jsd_0.1/1')}",
    ]
    lines = capsys.readouterr().out.splitlines()
    # Equal as a shell reads them; and each argument is one that the shell takes as it is.
    assert [shlex.split(line)[3:] for line in lines] == [shlex.split(line) for line in want]
    assert [shlex.split(line)[:3] for line in lines] == [[sys.executable, "-m", "gkd"]] * 4
    assert not pathlib.Path("out").exists() and launches() == []


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
    # A cell that was complete at fewer steps, or whose summary is cut off, is not complete.
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


def test_a_launcher_gets_the_cells_name_and_command(grid, capsys):
    assert grid("ACTION='list'", "LAUNCHER=['env', 'TPU_NAME=a-{name}', 'bash', 'tpu.sh']") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[2])
    assert words[:5] == ["env", "TPU_NAME=a-jsd-0-1-0", "bash", "tpu.sh", "train"]
    assert "--gin.MODEL_DIR='out/jsd_0.1/0'" in words


def test_the_status_says_what_is_complete(grid, capsys):
    pathlib.Path("fail").write_text("out/sft/1")
    assert grid() == 1
    capsys.readouterr()
    assert grid("ACTION='status'") == 0
    assert rows_of(capsys.readouterr().out) == [
        ["sft/0", "complete", "40/40"], ["sft/1", "open", "0/30"],
        ["jsd_0.1/0", "complete", "40/40"], ["jsd_0.1/1", "complete", "30/30"],
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_running_cell_after_it_saved(grid, number, capfd):
    pathlib.Path("wait").touch()

    def send():
        deadline = time.monotonic() + 30
        while not pathlib.Path("started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert grid() == 75
    thread.join()
    assert pathlib.Path("saved").exists() and launches() == ["out/sft/0"]
    assert f"gkd: stopped: {number.name} in [1/4] sft/0" in capfd.readouterr().err


def test_the_table_holds_what_the_runs_wrote(grid, capsys):
    pathlib.Path("fail").write_text("out/jsd_0.1/1")
    assert grid() == 1
    capsys.readouterr()
    assert grid("ACTION='table'") == 0
    # Lengths of 'out/sft/0' and 'out/jsd_0.1/0' with their quotes.
    want = "| method | runs | exact_match |\n| --- | --- | --- |\n"
    want += "| sft | 2/2 | 11.00 ± 0.00 |\n| jsd_0.1 | 1/2 | 15.00 |\n"
    assert capsys.readouterr().out == want == pathlib.Path("out/table.md").read_text()
    rows = json.loads(pathlib.Path("out/table.json").read_text())["rows"]
    assert [row["options"] for row in rows] == [{"method": "sft"}, {"method": "jsd_0.1"}]
    assert rows[1]["metrics"]["exact_match"] == {"values": [15], "mean": 15.0, "interval": None}
    assert grid("ACTION='table'", "METRICS=['rouge2']") == 1
    assert (
        "no run has the metric 'rouge2'; known: exact_match, seconds_per_step, steps"
        in capsys.readouterr().err
    )


EVALUATIONS = """EVALUATIONS={'t0.5': ['EVALUATION_TEMPERATURES=0.5'], 'all': []}"""


def test_evaluations_follow_their_run_and_fill_the_table(grid, capsys):
    pathlib.Path("fail").write_text("out/sft/1")
    assert grid(EVALUATIONS, "ACTION='list'") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    train, evaluate = (shlex.split(line)[3:] for line in lines[:2])
    more = ["--gin.EVALUATION_TEMPERATURES=0.5"]
    more += ["--gin.evaluate.evaluate.output='out/sft/0/evaluation-t0.5.json'"]
    assert evaluate == ["evaluate", *train[1:], *more]
    assert grid(EVALUATIONS) == 1
    cells = ("sft/0", "sft/1", "jsd_0.1/0", "jsd_0.1/1")
    names = ("", "/evaluation-t0.5.json", "/evaluation-all.json")
    want = [f"out/{cell}{name}" for cell in cells for name in names]
    assert launches() == [place for place in want if not place.startswith("out/sft/1/")]
    capsys.readouterr()
    assert (
        grid(
            EVALUATIONS,
            "ACTION='table'",
            "METRICS=['exact_match', 'teacher/exact_match', 'beam_4/exact_match']",
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "| sft | t0.5 | 1/2 | 7.00 | 9.00 | 8.00 |",
        "| sft | all | 1/2 | 7.00 | 9.00 | 8.00 |",
    ]
    # What was measured before its run went on is measured again.
    before = launches()
    before_the_run = pathlib.Path("out/jsd_0.1/0/summary.json").stat().st_mtime_ns - 10**9
    for name in names[1:]:
        os.utime(f"out/jsd_0.1/0{name}", ns=(before_the_run, before_the_run))
    pathlib.Path("fail").unlink()
    assert grid(EVALUATIONS) == 0
    assert launches()[len(before) :] == [place for place in want if "sft/1" in place] + want[7:9]


def _run(method, seed, **values):
    evaluation = {name: value for name, value in values.items() if name != "seconds_per_step"}
    summary = {"seconds_per_step": values.get("seconds_per_step"), "evaluation": evaluation}
    return {"method": method, "seed": seed}, summary


def test_means_and_intervals_are_those_computed_by_hand():
    runs = [_run("a", str(i), rouge2=value) for i, value in enumerate([1.0, 2.0, 6.0])]
    runs += [_run("b", "0", rouge2=10.0), _run("b", "1", rouge2=12.0)]
    runs += [({"method": "b", "seed": "2"}, None), ({"method": "c", "seed": "0"}, None)]
    averaged = table.averages(runs, ["rouge2"], "seed")
    a, b, c = (row["metrics"]["rouge2"] for row in averaged["rows"])
    # s = √7 and t(.975; 2) = 4.302653 from a printed table; s = √2 and t(.975; 1) = 12.706205.
    assert a["mean"] == 3.0 and a["interval"] == pytest.approx(4.302653 * (7 / 3) ** 0.5, rel=1e-6)
    assert b["mean"] == 11.0 and b["interval"] == pytest.approx(12.706205, rel=1e-6)
    assert c == {"values": [], "mean": None, "interval": None}
    assert table.markdown(averaged).splitlines()[2:] == [
        "| a | 3/3 | 3.00 ± 6.57 |",
        "| b | 2/3 | 11.00 ± 12.71 |",
        "| c | 0/1 | – |",
    ]
    # Over the other axis: the seeds are the rows.
    averaged = table.averages(runs[:5], ["rouge2"], "method")
    assert [row["options"] for row in averaged["rows"]] == [{"seed": seed} for seed in "012"]
    assert [row["metrics"]["rouge2"]["mean"] for row in averaged["rows"]] == [5.5, 7.0, 6.0]


def test_rows_of_different_metrics_and_rows_that_disagree():
    runs = [_run("a", "0", rouge2=2.0), _run("a", "1", rouge2=2.0), _run("b", "0", bleu=3.0)]
    averaged = table.averages(runs, ["rouge2", "bleu"], "seed")
    assert table.markdown(averaged).splitlines()[2:] == [
        "| a | 2/2 | 2.00 ± 0.00 | – |",
        "| b | 1/1 | – | 3.00 |",
    ]
    with pytest.raises(ValueError, match="1 of 2 runs of one row have 'rouge2'"):
        table.averages([runs[0], _run("a", "1", bleu=1.0)], ["rouge2"], "seed")
    with pytest.raises(ValueError, match="needs metrics"):
        table.averages(runs, [], "seed")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("ACTION='tabel'", "ACTION is 'tabel': choose one of run, list, status, table"),
        ("MAX_PARALLEL=0", "MAX_PARALLEL is 0: use 1 or more"),
        ("RETRIES=-1", "RETRIES is -1: use 0 or more"),
        ("AVERAGE_OVER='sed'", "AVERAGE_OVER is 'sed', but the axes are method, seed: choose one"),
        ("sweep.sweep.axes={}", "axes is empty"),
        ("sweep.sweep.axes=['seed']", "axes is ['seed']: use a dictionary"),
        ("sweep.sweep.axes={'seed': 3}", "axis 'seed' of the sweep is 3: write"),
        ("sweep.sweep.axes={'seed': {'0': 3}}", "option 0: 3 in place of a list"),
        ("PREREQUISITES=3", "PREREQUISITES is 3: use a dictionary"),
        ("PREREQUISITES={'a': 3}", "prerequisite a is 3: write"),
        ("sweep.sweep.axes={'seed': {}}", "axis seed of the sweep has no options"),
        ("sweep.sweep.axes={'seed': {'..': []}}", "the option '..' names a folder"),
        ("sweep.sweep.axes={'seed': {'a/b': []}}", "the option 'a/b' names a folder"),
        ("sweep.sweep.axes={'seed': {0: ['SEED=0']}}", "the option 0 names a folder"),
        ("sweep.sweep.axes={'seed': {'0': 'SEED=0'}}", "option 0: 'SEED=0' in place of a list"),
        ("sweep.sweep.axes={'seed': {'0': ['SEED']}}", "option 0: 'SEED' in place of a list"),
        ("sweep.sweep.axes={'seed': {'0': ['SEDE=0']}}", "cell 0: --gin.SEDE=0: nothing uses"),
        ("sweep.sweep.axes={'a': {'0': ['no.gin']}}", "cell 0: --gin_file=no.gin: no such file"),
        ("OVERRIDES=['MODEL_DIR=\"x\"']", 'MODEL_DIR="x": a cell\'s MODEL_DIR is'),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(grid, override, part, capsys):
    assert grid(override) in (1, 2)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and part in errors
    assert launches() == []


def test_a_killed_runner_takes_its_cells_along_and_the_next_starts_each_once(grid):
    """The issue's own case: cells went on alone, and the next runner started second copies."""
    pathlib.Path("wait").touch()
    runner = subprocess.Popen(
        [PYTHON, "-c", RUNNER], cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    while not pathlib.Path("started").exists() and runner.poll() is None:
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    deadline = time.monotonic() + 20
    while not pathlib.Path("saved").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pathlib.Path("saved").exists()  # the cell was asked to stop
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
        while len(launches()) < 3:
            time.sleep(0.05)
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
        while len(launches()) < 3:
            time.sleep(0.05)
        other.kill()
        other.wait()

    thread = threading.Thread(target=end)
    thread.start()
    assert grid() == 0
    thread.join()
    assert launches() == ["out/sft/0", "out/jsd_0.1/0", "out/jsd_0.1/1", "out/sft/1"]
