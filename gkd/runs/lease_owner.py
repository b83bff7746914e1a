"""The owner of a lease: identifies a process, and checks if it still runs."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import os
import pathlib
import re
import socket
import uuid
from typing import Any

from gkd.errors import InvalidValue, StorageError

SECONDS = "GKD_LEASE_SECONDS"  # heartbeat timeout of owners on other hosts
DEFAULT_SECONDS = 60
RECORD_BYTES = 1024  # a constant length, so that a heartbeat overwrites the record in place
_NOT_TEXT = ("pid", "seconds", "previous")


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that owns a lease.

    Attributes:
      id: unique id of the lease.
      host, boot, pid_namespace, pid, started: identity of the process; `started` distinguishes it
        from a later process with the same pid, which is valid in `boot` and `pid_namespace` only.
      since: time when it took the lease, in UTC, for messages.
      seconds: heartbeat timeout after which the lease may be taken over.
      previous: id of the lease that it took over, or None.
    """

    id: str
    host: str
    boot: str
    pid_namespace: str
    pid: int
    started: str
    since: str
    seconds: float | int
    previous: str | None = None

    @classmethod
    def this_process(cls, previous: str | None = None) -> Owner:
        """Builds the owner of a new lease for the calling process.

        Args:
          previous: id of the lease that is taken over, or None.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(
            uuid.uuid4().hex, *_place(), os.getpid(), _start_of(os.getpid())[0] or "", now,
            lease_seconds(), previous,
        )  # fmt: skip

    @classmethod
    def parse(cls, content: bytes) -> Owner | None:
        """Parses the content of a lease's file.

        Args:
          content: content of the file.

        Returns:
          The owner; None if the content is empty or damaged.
        """
        try:
            record = json.loads(content)
            known = {field.name: record[field.name] for field in dataclasses.fields(cls)}
            texts = [value for name, value in known.items() if name not in _NOT_TEXT]
            if not all(isinstance(text, str) for text in texts):
                return None
            pid, seconds = known["pid"], known["seconds"]
            valid = isinstance(pid, int) and pid > 0 and 0 < float(seconds) < 86400
            return cls(**known) if valid else None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def record(self, beat: int) -> bytes:
        """Builds the content of the file for one heartbeat.

        Args:
          beat: number of the heartbeat.
        """
        text = json.dumps(dataclasses.asdict(self) | {"beat": beat})
        return text.encode().ljust(RECORD_BYTES - 1) + b"\n"

    def is_this_process(self) -> bool:
        """Returns True if the owner is the calling process."""
        process = (*_place(), os.getpid(), _start_of(os.getpid())[0] or "")
        return process == (self.host, self.boot, self.pid_namespace, self.pid, self.started)

    def is_alive(self) -> bool | None:
        """Returns True if the process runs, None if that cannot be determined here."""
        if (self.host, self.boot, self.pid_namespace) != _place():
            return None
        started, state = _start_of(self.pid)
        if started is not None:
            return started == self.started and state not in "ZX"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # a process of another user
            return None
        return None  # no /proc: it may be a later process with the same pid

    def describe(self) -> str:
        """Names the process: `host a, process 12, since 2026-01-01T00:00:00+00:00`."""
        suspended = self.is_alive() and _start_of(self.pid)[1] in "Tt"
        return (
            f"host {self.host}, process {self.pid}{' (suspended)' if suspended else ''}, "
            f"since {self.since}"
        )


def lease_seconds() -> float:
    """Reads the heartbeat timeout of owners on other hosts from the environment.

    Returns:
      The timeout in seconds.

    Raises:
      ValueError: the value is no number of seconds.
    """
    value = os.environ.get(SECONDS, str(DEFAULT_SECONDS))
    if not re.fullmatch(r"[1-9]\d{0,4}", value):
        raise InvalidValue(f"{SECONDS} is {value!r}: use whole seconds, from 1 to 86399")
    return float(min(int(value), 86399))


def check_readable(path: pathlib.Path) -> None:
    """Refuses a path that can never be read as a lease and would therefore never be free.

    Temporary failures of a mount are ignored.

    Args:
      path: path of the lease's newest file, which may be missing.

    Raises:
      OSError: the path is a folder, a link, or not readable by this user.
    """
    try:
        with open(path, "rb"):
            reason = ""
    except OSError as error:
        lasting = error.errno in (errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP)
        reason = os.strerror(error.errno) if lasting else ""
    if path.is_symlink():
        reason = reason or "it is a link"
    if reason:
        raise StorageError(
            f"cannot read the lease {path} ({reason}): if no launch writes there, move it away"
        )


def _place() -> tuple[str, str, str]:
    """Host, boot and pid namespace of this process; "" if the system lacks them."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = ""
    return socket.gethostname(), boot, namespace


def _start_of(pid: int) -> tuple[str | None, str]:
    """Start time of a local process (clock ticks since boot), and the letter of its state."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None, "?"
    fields: list[Any] = text.rpartition(")")[2].split()
    return (fields[19], fields[0]) if len(fields) > 19 else (None, "?")
