"""Texts that a job's processes exchange through JAX's coordinator: settings, the first failure."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from gkd.errors import InvalidValue, JobError

_ALERTS, _ENDED, _PRESENT = "gkd/alerts", "gkd/ended", "gkd/present"
_FAILED, _ROLL_CALL = f"{_ALERTS}/failed", f"{_ALERTS}/roll_call"
_POLL_SECONDS = 1.0
_SHOWN = 5  # differences that a message lists
_stop_watching = threading.Event()
_ending = threading.Lock()  # held by the thread that prints another process's failure


def check_same(subject: str, facts: Mapping[str, str], timeout_seconds: float | int) -> None:
    """Checks that every process of a job has the same facts as process 0.

    Every process must call it, in the same order for all subjects. Only a hash is sent where all
    agree.

    Args:
      subject: name of the facts for messages, such as 'settings'.
      facts: texts by name.
      timeout_seconds: seconds to wait for the first process.

    Raises:
      InvalidValue: this process's facts differ; the message lists the differences.
      JobError: process 0 did not call it in time.
      RuntimeError: process 0 cannot be reached any more.
    """
    client, number = _job()
    if client is None:
        return
    text = json.dumps(dict(facts), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    key = f"gkd/same/{subject}"
    if number == 0:
        client.key_value_set(f"{key}/facts", text)
        client.key_value_set(f"{key}/digest", digest)
        return
    try:
        same = client.blocking_key_value_get(f"{key}/digest", int(timeout_seconds * 1000)) == digest
    except RuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):  # process 0 was lost
            raise
        raise JobError(
            f"process 0 of the job has not sent its {subject} within {timeout_seconds} s: start "
            "all of them again"
        ) from error
    if not same:
        first = json.loads(client.blocking_key_value_get(f"{key}/facts", 10_000))
        raise InvalidValue(
            f"process {number} of the job has other {subject} than process 0: "
            f"{described_differences(first, facts)}: start every process with the same command, "
            "code and files"
        )


def described_differences(first: Mapping[str, str], own: Mapping[str, str]) -> str:
    """Lists the facts that differ: `LEARNING_RATE 0.003 in process 0, 1e-05 here`."""
    names = [name for name in sorted(first.keys() | own.keys()) if first.get(name) != own.get(name)]
    shown = [
        f"{name} {first.get(name, 'unset')} in process 0, {own.get(name, 'unset')} here"
        for name in names[:_SHOWN]
    ]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return "; ".join(shown + more)


def watch_for_failures() -> None:
    """Starts a thread that ends this process, in one line, when another one of the job failed.

    The main thread cannot: it waits in a collective for the process that failed. The thread also
    answers roll calls.
    """
    client, number = _job()
    if client is None:
        return
    thread = threading.Thread(target=_watch, args=(client, number), daemon=True)
    thread.start()

    def stop():  # before JAX disconnects, whose own exit handler is older
        _stop_watching.set()
        thread.join()
        _say_ended(client, number)

    atexit.register(stop)


def _watch(client: Any, number: int) -> None:
    answered = False
    while not _stop_watching.wait(_POLL_SECONDS):
        try:
            alerts = _alerts(client)
            _end_with_another(client, number, alerts)
            if _ROLL_CALL in alerts and not answered:
                client.key_value_set(f"{_PRESENT}/{number}", "")
                answered = True
        except RuntimeError:
            return  # the coordinator is gone: JAX ends the process


def _alerts(client: Any) -> dict[str, str]:
    """Reads the alerts of all processes: a failure, a roll call."""
    return dict(client.key_value_dir_get(_ALERTS))


def roll_call(seconds: float) -> set[int] | None:
    """Asks all processes of the job for a sign of life, after one failed in this process.

    Ends this process with the failure of another one if there is one, whose error alone tells what
    to do. A job has one roll call, after which it ends.

    Args:
      seconds: the longest wait for the answers, which come within two as a rule.

    Returns:
      The numbers of the processes that did not answer; None in a job of one process.

    Raises:
      JobError: process 0, which transmits the messages, cannot be reached.
    """
    client, number = _job()
    if client is None:
        return None
    deadline = time.monotonic() + seconds
    try:
        _end_with_another(client, number, _alerts(client))
        with contextlib.suppress(RuntimeError):  # another process was first
            client.key_value_set(_ROLL_CALL, str(number))
        while True:
            _end_with_another(client, number, _alerts(client))
            silent = _others(number) - _numbers(client, _PRESENT) - _numbers(client, _ENDED)
            if not silent or time.monotonic() >= deadline:
                return silent
            time.sleep(_POLL_SECONDS / 4)
    except RuntimeError as error:
        raise JobError("process 0 of the job cannot be reached") from error


def _others(number: int) -> set[int]:
    from jax._src import distributed

    return set(range(distributed.global_state.num_processes)) - {number}


def _numbers(client: Any, folder: str) -> set[int]:
    """The processes that have written a key of their number into a folder."""
    return {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(folder)}


def _end_with_another(client: Any, number: int, alerts: Mapping[str, str]) -> None:
    """Ends this process in one line if another one has reported a failure."""
    if _FAILED not in alerts:
        return
    failure = json.loads(alerts[_FAILED])
    if _stop_watching.is_set():
        return
    _ending.acquire()  # never released: the process ends below
    print(
        f"gkd: error: process {failure['process']} of the job failed, and process {number} "
        f"ends with it: {failure['line']}",
        file=sys.stderr,
        flush=True,
    )
    _end(client, number, failure["code"])


def end_job(line: str, code: int, lost: Collection[int] = ()) -> None:
    """Ends every process of the job because this one failed; returns in a job of one process.

    Args:
      line: the error, which the others print.
      code: the exit code of all.
      lost: numbers of processes that will not end by themselves.
    """
    client, number = _job()
    if client is None:
        return
    _stop_watching.set()
    failure = json.dumps({"process": number, "code": code, "line": line})
    with contextlib.suppress(RuntimeError):  # another process failed first
        client.key_value_set(_FAILED, failure)
    if number == 0:
        _wait_for(client, _others(number) - set(lost))
    _end(client, number, code)


def _wait_for(client: Any, numbers: set[int]) -> None:
    """Process 0 is the coordinator: where it ends first, the others cannot read why."""
    deadline = time.monotonic() + 10 * _POLL_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):
            if numbers <= _numbers(client, _ENDED):
                return
        time.sleep(_POLL_SECONDS / 10)


def _end(client: Any, number: int, code: int) -> None:
    """Leaves at once: an ordinary exit would wait for the others in JAX's own barrier."""
    _say_ended(client, number)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _say_ended(client: Any, number: int) -> None:
    with contextlib.suppress(RuntimeError):  # the coordinator is gone
        client.key_value_set(f"{_ENDED}/{number}", "")


def _job() -> tuple[Any, int]:
    """JAX's client of the job's key-value store (None outside a job), and this process's number."""
    if "jax" not in sys.modules:
        return None, 0
    from jax._src import distributed  # JAX has no public way to its key-value store

    state = distributed.global_state
    return (state.client if (state.num_processes or 1) > 1 else None), state.process_id or 0
