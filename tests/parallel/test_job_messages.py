"""Two processes: other settings are named, and a failure of either ends both at once."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from gkd.parallel import job_messages, processes
from gkd.runs.signals import EXIT_LOST

PROGRAM = """
import os, sys, time
from gkd.parallel import job_messages, processes
if sys.argv[3] == "collective":
    job_messages._POLL_SECONDS = 100  # the collective fails before the watch has seen anything
processes.join(os.environ)
number = int(os.environ["GKD_PROCESS_ID"])
try:
    facts = {"LEARNING_RATE": sys.argv[1 + number], "SEED": "0"}
    job_messages.check_same("settings", facts, 60)
    if sys.argv[3] == "collective":
        from jax.experimental import multihost_utils
        multihost_utils.broadcast_one_to_all(1)  # both are there
    if sys.argv[3] == str(number) or (sys.argv[3], number) == ("collective", 1):
        raise ValueError("a file is missing")
except ValueError as error:
    print(f"gkd: error: {error}", file=sys.stderr)
    job_messages.end_job(str(error), 2)
if sys.argv[3] == "collective":
    from gkd.cli import command_line
    try:
        multihost_utils.broadcast_one_to_all(1)  # the other process has ended
    except Exception as error:
        sys.exit(command_line._fail(error, 1))
from gkd.cli import command_line
from jax.experimental import multihost_utils
if sys.argv[3] == "killed":
    multihost_utils.broadcast_one_to_all(1)  # both are there
    if number == 1:
        os.kill(os.getpid(), 9)
    try:
        multihost_utils.broadcast_one_to_all(1)
    except Exception as error:
        sys.exit(command_line._fail(error, 1))
if (sys.argv[3], number) == ("mistake", 1):
    sys.exit(command_line._fail(RuntimeError("INTERNAL: a mistake"), 1))
if sys.argv[3] != "none":
    time.sleep(300)  # as the main thread does in a collective
print("done")
"""


def run_two(*arguments):
    """Both processes' (exit code, stderr lines of GKD), and the seconds they took after joining."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {processes.COORDINATOR: f"127.0.0.1:{port}", processes.PROCESSES: "2", "XLA_FLAGS": ""}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], text=True, stderr=subprocess.PIPE,
            env={**os.environ, **job, processes.PROCESS_ID: str(number)},
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    lines = [[line for line in text.splitlines() if line.startswith("gkd")] for text in errors]
    return [process.returncode for process in both], lines


def test_other_settings_are_named_and_end_both():
    codes, (first, second) = run_two("0.003", "1e-05", "wait")
    assert codes == [2, 2]
    message = (
        "process 1 of the job has other settings than process 0: LEARNING_RATE 0.003 in process "
        "0, 1e-05 here: start every process with the same command, code and files"
    )
    assert second == [f"gkd: error: {message}"]
    assert first == [
        f"gkd: error: process 1 of the job failed, and process 0 ends with it: {message}"
    ]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_ends_both(failing):
    begin = time.monotonic()
    codes, lines = run_two("0.003", "0.003", str(failing))
    assert time.monotonic() - begin < 100
    assert codes == [2, 2]
    assert lines[failing] == ["gkd: error: a file is missing"]
    assert lines[1 - failing] == [
        f"gkd: error: process {failing} of the job failed, and process {1 - failing} ends with "
        "it: a file is missing"
    ]


def test_a_collective_that_fails_as_another_ended_says_why_that_one_did():
    codes, lines = run_two("0.003", "0.003", "collective")
    assert codes == [2, 2]
    assert lines == [
        ["gkd: error: process 1 of the job failed, and process 0 ends with it: a file is missing"],
        ["gkd: error: a file is missing"],
    ]


def test_a_collective_that_fails_as_another_was_killed_says_so_in_one_line():
    """Gloo reports the closed connection at once, the coordination service the loss much later."""
    begin = time.monotonic()
    (code, killed), (lines, none) = run_two("0.003", "0.003", "killed")
    assert time.monotonic() - begin < processes.HEARTBEAT_SECONDS
    assert (code, killed, none) == (EXIT_LOST, -signal.SIGKILL, [])
    (line,) = lines
    assert line.startswith("gkd: error: process 1 of the job was lost (UNKNOWN: Gloo ")
    assert line.endswith("): start all of them again: the run continues from its last checkpoint")


def test_a_mistake_in_one_process_keeps_its_code_as_the_other_is_alive():
    begin = time.monotonic()
    codes, (first, second) = run_two("0.003", "0.003", "mistake")
    assert time.monotonic() - begin < processes.HEARTBEAT_SECONDS  # which a silent one would take
    assert codes == [1, 1]
    assert second == ["gkd: error: INTERNAL: a mistake"]
    assert first == [
        "gkd: error: process 1 of the job failed, and process 0 ends with it: INTERNAL: a mistake"
    ]


def test_a_job_that_agrees_ends_as_usual():
    assert run_two("0.003", "0.003", "none") == ([0, 0], [[], []])


def test_in_a_single_process_nothing_happens():
    job_messages.check_same("settings", {"SEED": "0"}, 0.1)
    job_messages.end_job("an error", 1)


def test_only_some_of_many_differences_are_listed():
    first, own = {str(i): "a" for i in range(7)}, {"0": "b", "7": "a"}
    text = job_messages.described_differences(first, own)
    assert text.startswith("0 a in process 0, b here; 1 a in process 0, unset here; ")
    assert text.endswith("; and 3 more")
