"""The watcher of a process that belongs to a job."""

import os
import subprocess
import sys

import pytest

from gkd.cli import supervisor
from gkd.runs.signals import EXIT_LOST
from tests.paths import REPOSITORY
from tests.waiting import wait_until


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent is gone")
def test_a_watcher_that_is_killed_takes_its_process_along(tmp_path):
    """SIGKILL of the watcher is SIGTERM for the process, which saves."""
    child = """
import pathlib, signal, time
from gkd.cli import command_line, supervisor
from tests.paths import REPOSITORY, TINY
def run(arguments):
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), exit(75)))
    pathlib.Path("started").touch()
    time.sleep(60)
command_line.main = run
supervisor.main([])
"""
    program = "from gkd.cli import supervisor; import sys; "
    program += f"supervisor._watch([sys.executable, '-c', {child!r}])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    watcher = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    for file, after in (("started", watcher.kill), ("saved", lambda: None)):
        wait_until((tmp_path / file).exists)
        after()
    watcher.wait()


def test_an_aborted_process_is_explained(monkeypatch, capfd):
    """The watcher of a child that a signal ended; one that ends by itself keeps its code."""
    for joined, words in (("true", "before it found the others"), ("echo 1 >&$GKD_JOINED", "lost")):
        assert supervisor._watch(["bash", "-c", f"{joined}; kill -ABRT $$"]) == EXIT_LOST
        error = capfd.readouterr().err
        assert error.startswith("gkd: error: process of this host was ended by SIGABRT")
        assert words in error and error.count("\n") == 1
    assert supervisor._watch(["bash", "-c", "kill -KILL $$"]) == EXIT_LOST
    assert "SIGKILL, by hand or for lack of memory" in capfd.readouterr().err
    assert supervisor._watch(["bash", "-c", "exit 75"]) == 75
