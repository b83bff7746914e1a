"""A job's process and the one that watches it: JAX aborts, in C++, where another was lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from gkd.jobs import command_line
from gkd.jobs.signals import EXIT_LOST
from gkd.parallel import processes

_WATCHED = "GKD_WATCHED"
_OPTIONS = {
    "--coordinator": processes.COORDINATOR,
    "--processes": processes.PROCESSES,
    "--process_id": processes.PROCESS_ID,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; as a watched child where it belongs to a job of several processes.

    Args:
      arguments: what follows `python -m gkd`, also --coordinator=HOST:PORT, --processes=N and
        --process_id=I; the process's own when None.

    Returns:
      The exit code, as the command line's help text lists them.
    """
    rest = []
    for argument in sys.argv[1:] if arguments is None else arguments:
        name, equals, value = argument.partition("=")
        if name in _OPTIONS and equals:
            os.environ[_OPTIONS[name]] = value
        else:
            rest.append(argument)
    if os.environ.get(_WATCHED) or not processes.several():
        return command_line.main(rest)
    return _watch([sys.executable, "-m", "gkd", *rest])


def _watch(command: list[str]) -> int:
    """Runs the command, passes signals on, and explains an abort."""
    child = subprocess.Popen(command, env={**os.environ, _WATCHED: "1"}, start_new_session=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    code = child.wait()
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(f"gkd: error: {lost(f'was ended by {name}')}", file=sys.stderr)
    return EXIT_LOST


def lost(what: str) -> str:
    """A line for a process that could not go on without another."""
    number = os.environ.get(processes.PROCESS_ID, "of this host")
    return (
        f"process {number} {what}: most likely another process of the job was lost, which the "
        f"others notice within {processes.heartbeat_seconds()} s ({processes.HEARTBEAT}); start "
        "all of them again: the run continues from its last checkpoint"
    )
