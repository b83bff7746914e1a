"""Stop requests, with real signals to this and to other processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gkd.configuration.gin_files import REPOSITORY
from gkd.runs.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_only_sets_the_flag(number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"this process ignores {signal.Signals(number).name}, as under nohup")
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with StopRequest() as stop:
        assert not stop.requested and stop.signal_name == ""
        os.kill(os.getpid(), number)
        assert stop.requested and stop.signal_name == number.name
    after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    assert after == before


def test_handlers_are_restored_without_a_signal():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_interrupts():
    # Where a shell started the tests in the background, Python leaves interrupts ignored.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, previous)


def test_a_second_sigterm_ends_a_run_that_hangs():
    program = (
        "import os, signal\nfrom gkd.runs.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print(stop.requested, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('still here', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout == "True\n"
    assert done.returncode == -signal.SIGTERM


def test_a_hangup_is_ignored_under_nohup():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_an_interrupt_while_modules_are_imported_is_one_line(seconds):
    file = REPOSITORY / "tests/train/tiny.gin"
    # Where a shell started the tests in the background, children would inherit ignored interrupts.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "gkd", "train", f"--gin_file={file}", "--gin.MODEL_DIR='x'",
         "--gin.DRY_RUN=True"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    signal.signal(signal.SIGINT, previous)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "gkd: interrupted\n")


@pytest.mark.parametrize("pause", [0.0, 2.5])
def test_a_signal_of_another_kind_is_the_same_request_for_a_moment(pause):
    """Ctrl-C at a launcher: SIGINT from the terminal, and SIGTERM from the launcher's trap."""
    program = (
        "import os, signal, time\nfrom gkd.runs.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        f"    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep({pause})\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print(stop.signal_name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('still here', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stdout == ("" if pause else "SIGINT\n")
    assert done.returncode == -signal.SIGTERM
