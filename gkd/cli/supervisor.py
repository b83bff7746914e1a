"""Supervises a process of a job: JAX aborts it in C++ if another process was lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from gkd.cli import command_line
from gkd.parallel import processes
from gkd.runs.signals import EXIT_LOST, end_with_parent, stop_signals

_OPTIONS = {
    "--coordinator": processes.COORDINATOR,
    "--processes": processes.PROCESSES,
    "--process_id": processes.PROCESS_ID,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, in a supervised child if it belongs to a job of several processes.

    Args:
      arguments: the command line after `python -m gkd`, with --coordinator=HOST:PORT,
        --processes=N and --process_id=I; by default that of this process.

    Returns:
      The exit code, as listed in the help text.
    """
    rest = []
    given = iter(sys.argv[1:] if arguments is None else arguments)
    for argument in given:
        name, equals, value = argument.partition("=")
        if name in _OPTIONS:
            os.environ[_OPTIONS[name]] = value if equals else next(given, "")
        else:
            rest.append(argument)
    watched = bool(os.environ.get(processes.JOINED))
    if watched:
        end_with_parent()()
    if watched or not processes.is_multiprocess(os.environ):
        return command_line.main(rest)
    return _watch([sys.executable, "-m", "gkd", *rest])


def _watch(command: list[str]) -> int:
    """Runs the command, forwards signals, and explains an abort."""
    reader, writer = os.pipe()  # the child writes once it has joined the others
    environment = {**os.environ, processes.JOINED: str(writer)}
    child = subprocess.Popen(command, env=environment, pass_fds=[writer], start_new_session=True)
    os.close(writer)
    for number in stop_signals():
        signal.signal(number, lambda number, _: child.send_signal(number))
    code = child.wait()
    if code >= 0:
        return code
    os.set_blocking(reader, False)
    try:
        joined = bool(os.read(reader, 1))
    except BlockingIOError:  # a process that the child left behind has the other end open
        joined = False
    print(f"gkd: error: {_lost(signal.Signals(-code).name, joined)}", file=sys.stderr)
    return EXIT_LOST


def _lost(signal_name: str, joined: bool) -> str:
    """Explains why a process could not continue, or start, without another."""
    number = os.environ.get(processes.PROCESS_ID, "of this host")
    ended = f"process {number} was ended by {signal_name}"
    again = "start all of them again: the run continues from its last checkpoint"
    if signal_name == "SIGKILL":
        return f"{ended}, by hand or for lack of memory, and the others follow; {again}"
    if not joined:
        address = os.environ.get(processes.COORDINATOR, "as the cluster names it")
        return (
            f"{ended} before it found the others: they must all start within "
            f"{processes.start_seconds(os.environ)} s ({processes.START}), and reach process 0's "
            f"port ({processes.COORDINATOR} is {address})"
        )
    return (
        f"{ended}: most likely another process of the job was lost, which the others notice within "
        f"{processes.heartbeat_seconds(os.environ)} s ({processes.HEARTBEAT}); {again}"
    )
