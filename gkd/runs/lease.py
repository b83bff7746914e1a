"""Leases on outputs: of all launches on any number of hosts, only one at a time writes an output.

The lease is a small file beside the output, `NAME.lease-1`, with its owner (host, process, start
time), which the owner rewrites every few seconds as a heartbeat. The file is created exclusively,
so that only one of two launches gets it, and read back, as some mounts detect a second creator only
then. File locks are not used, as network file systems and FUSE mounts lack them, and clocks of two
hosts are never compared.

A lease of a dead owner (this host, this boot, no such process) is taken over immediately; the lease
of another host after a heartbeat timeout, when its content has not changed for `GKD_LEASE_SECONDS`
as measured here. A takeover creates the file with the next number, `NAME.lease-2`, which again only
one launch can do. A suspended owner finds that file when it resumes, and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from gkd.errors import ExistingFile, NotAFolder, StorageError
from gkd.files.atomic_files import cannot_write
from gkd.parallel import processes
from gkd.runs.lease_owner import RECORD_BYTES, Owner, check_readable, lease_seconds

_BEATS = 12  # heartbeats of an owner within that time
_FIRST_BEAT_SECONDS = 1.0


class LeaseHeld(ExistingFile):
    """Raised if another launch writes to this output."""


class LeaseLost(StorageError):
    """Raised if another launch has taken over this output."""


@dataclasses.dataclass(frozen=True)
class Sight:
    """An observation of a lease.

    Attributes:
      number: number of the newest file; 0 without a file.
      content: content of that file.
      owner: owner in that file; None if it is missing or damaged.
      state: 'free', 'dead' (may be taken over), 'held', or 'silent' (not known yet, look again).
    """

    number: int
    content: bytes
    owner: Owner | None
    state: str

    @property
    def identity(self) -> str | None:
        """Id of the lease; for a damaged file the hash of its content; None without a file."""
        if not self.number:
            return None
        return self.owner.id if self.owner else hashlib.sha256(self.content).hexdigest()


class Watch:
    """Observes a lease repeatedly, and detects the heartbeats of its owner."""

    def __init__(self, prefix: pathlib.Path) -> None:
        """Stores the path of the lease.

        Args:
          prefix: path of the files without `.lease-N`.
        """
        self._prefix = prefix
        self._seen: tuple[int, bytes] | None = None
        self._identity: str | None = None
        self._since = 0.0

    def look(self) -> Sight:
        """Observes the lease; the state may be 'silent' until enough time has passed."""
        number = max(numbers(self._prefix), default=0)
        content = _read(file_of(self._prefix, number)) if number else None
        if content is None:  # none, or removed just now
            return Sight(0, b"", None, "free")
        owner = Owner.parse(content)
        sight = Sight(number, content, owner, "silent")
        beats = False
        if self._seen != (number, content):
            beats = self._identity is not None and self._identity == sight.identity
            self._seen, self._identity, self._since = (number, content), sight.identity, _clock()
        alive = owner.is_alive() if owner else None
        waited = _clock() - self._since
        if alive or (alive is None and beats and owner):
            return dataclasses.replace(sight, state="held")
        if alive is False or waited > (owner.seconds if owner else lease_seconds()):
            return dataclasses.replace(sight, state="dead")
        return sight


class Lease:
    """This launch's lease on an output; a context manager that releases it.

    Example:
      with Lease(directory / "run", f"MODEL_DIR {directory}") as lease:
          ...
          lease.check()  # before every write
    """

    def __init__(self, prefix: pathlib.Path | str, what: str) -> None:
        """Stores the path; nothing is written yet.

        Args:
          prefix: path of the files without `.lease-N`; its folder exists.
          what: name of the output in messages: `MODEL_DIR runs/a`.
        """
        self._prefix, self._what = pathlib.Path(prefix).absolute(), what
        self._owner: Owner | None = None
        self._number = self._beats = 0
        self._verified = 0.0
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        if self._owner is None:
            self.take()
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            # If the lease is lost, another launch writing the same files caused the error.
            if isinstance(error, Exception) and not isinstance(error, LeaseLost):
                self._verify_quietly()
                if self._lost is not None:
                    raise LeaseLost(self._lost) from error
        finally:
            self.release()

    def take(self) -> None:
        """Takes the lease, waiting while it is unknown if the last owner still runs.

        Raises:
          LeaseHeld: another launch holds it; the message names its host and process.
          OSError: the folder cannot be written, or a lease in it cannot be read.
        """
        watch, reported = Watch(self._prefix), False
        while True:
            sight = watch.look()
            is_own = sight.owner is not None and sight.owner.is_this_process()
            if sight.state == "held" and not is_own:
                raise LeaseHeld(
                    f"{self._what} is in use by another launch ({sight.owner.describe()}): wait "
                    "until it has ended, stop it, or choose another name"
                )
            if sight.state == "silent" and not is_own:
                if not reported and sight.owner is not None:
                    reported = True
                    print(
                        f"gkd: {self._what} was in use by {sight.owner.describe()}: waiting up to "
                        f"{sight.owner.seconds:.0f} s for its heartbeat",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
                time.sleep(min(0.5, lease_seconds() / _BEATS))
                continue
            check_readable(file_of(self._prefix, max(numbers(self._prefix), default=1)))
            if self._claim(sight):
                break
            time.sleep(random.uniform(0.05, 0.3))
        self._verified = _clock()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _claim(self, sight: Sight) -> bool:
        """Creates the next file; returns True if this launch created it, and rightfully."""
        number = sight.number + 1
        owner = Owner.this_process(sight.identity)
        path = file_of(self._prefix, number)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            try:
                if os.write(file, owner.record(0)) < RECORD_BYTES:
                    raise OSError(28, "No space left on device")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            # A mount may report only here that another host was first.
            other = Owner.parse(_read(path) or b"")
            if other is not None and other.id != owner.id:
                return False
            with contextlib.suppress(OSError):
                path.unlink()
            raise cannot_write(path, error) from error
        if not self._is_rightful(owner, sight, number):
            if _id_in(path) == owner.id:
                with contextlib.suppress(OSError):
                    path.unlink()
            return False
        for older in numbers(self._prefix):
            if older < number:
                with contextlib.suppress(OSError):
                    file_of(self._prefix, older).unlink()
        self._owner, self._number, self._beats, self._lost = owner, number, 0, None
        return True

    def _is_rightful(self, owner: Owner, sight: Sight, number: int) -> bool:
        """True if the file is this launch's, is the newest, and follows the observed one."""
        if _id_in(file_of(self._prefix, number)) != owner.id:
            return False
        if max(numbers(self._prefix), default=0) != number:
            return False
        if not sight.number:
            return True
        content = _read(file_of(self._prefix, sight.number))
        if content is None:
            return False
        now = Sight(sight.number, content, Owner.parse(content), "")
        return now.identity == sight.identity

    def check(self) -> None:
        """Checks that this launch still holds the lease; to be called before every write.

        The file is read only if the last check is old, as after a suspension.

        Raises:
          LeaseLost: another launch has taken it over.
        """
        if self._owner is None:
            return
        if self._lost is None and _clock() - self._verified > 2 * self._owner.seconds / _BEATS:
            self._verify_quietly()
        if self._lost is not None:
            raise LeaseLost(self._lost)

    def _verify_quietly(self) -> None:
        """Checks the lease without raising; failures of the mount are ignored."""
        owner = self._owner
        if owner is None or self._lost is not None:
            return
        try:
            content = file_of(self._prefix, self._number).read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError:
            return
        current = Owner.parse(content)
        try:
            successor = Owner.parse(file_of(self._prefix, self._number + 1).read_bytes())
        except OSError:
            successor = None
        if successor is not None and successor.previous != owner.id:
            successor = None  # it took over another lease, and will detect that
        if successor is None and current is not None and current.id != owner.id:
            successor = current
        if successor is None and current is not None:
            self._verified = _clock()
            return
        if successor is None and content:
            return  # damaged: the next heartbeat writes it again
        by = f"by another launch ({successor.describe()})" if successor else "and its file is gone"
        self._lost = (
            f"{self._what} was taken over {by} while this process did not run or could not reach "
            "it: this launch ends, its saved results are kept"
        )

    def _beat(self) -> None:
        """Rewrites the file as a heartbeat, in a separate thread."""
        every = self._owner.seconds / _BEATS
        wait = min(_FIRST_BEAT_SECONDS, every)
        while not self._ended.wait(wait):
            wait = every
            self._verify_quietly()
            if self._lost is not None:
                return
            self._beats += 1
            with contextlib.suppress(OSError):
                path = file_of(self._prefix, self._number)
                file = os.open(path, os.O_RDWR)
                try:
                    # Writes to the opened file, which after a takeover nobody reads.
                    current = Owner.parse(os.read(file, RECORD_BYTES))
                    if current is None or current.id == self._owner.id:
                        os.pwrite(file, self._owner.record(self._beats), 0)
                finally:
                    os.close(file)

    def release(self) -> None:
        """Releases the lease, so that the next launch need not wait."""
        if self._owner is None:
            return
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        path = file_of(self._prefix, self._number)
        if self._owner.pid == os.getpid() and _id_in(path) == self._owner.id:
            with contextlib.suppress(OSError):
                path.unlink()
        self._owner = self._thread = None
        self._ended = threading.Event()


def run_lease(model_dir: str | os.PathLike[str]) -> contextlib.AbstractContextManager[Lease]:
    """Builds the lease on a run directory, see `job_lease`.

    Args:
      model_dir: path of the run directory; it is created with its parents.

    Raises:
      NotADirectoryError: the path is a file.
    """
    path = pathlib.Path(model_dir)
    if path.exists() and not path.is_dir():
        raise NotAFolder(f"MODEL_DIR {path} is a file: choose a directory for the run")
    return job_lease(run_prefix(path), f"MODEL_DIR {path}")


@contextlib.contextmanager
def job_lease(prefix: pathlib.Path, what: str) -> Iterator[Lease]:
    """Holds a lease for all processes of a job; the primary process takes it.

    Args:
      prefix, what: as in `Lease`; the folder is created.

    Yields:
      The lease; in the other processes a lease that is never lost.

    Raises:
      LeaseHeld: another launch holds it; raised in every process of the job.
      LeaseLost: another launch has taken it over.
    """
    lease, refusal = Lease(prefix, what), None
    if processes.is_primary_process():
        try:
            prefix.parent.mkdir(parents=True, exist_ok=True)
            lease.take()
        except Exception as error:
            refusal = error
    if not processes.broadcast_from_primary(refusal is None):
        raise refusal or LeaseHeld(f"the job's first process cannot write to {what}")
    with lease if processes.is_primary_process() else contextlib.nullcontext():
        yield lease


def run_prefix(model_dir: pathlib.Path) -> pathlib.Path:
    """Returns the path, without `.lease-N`, of the lease on a run directory."""
    return model_dir / "run"


def file_of(prefix: pathlib.Path, number: int) -> pathlib.Path:
    """Returns the path of the lease's file with a number."""
    return prefix.with_name(f"{prefix.name}.lease-{number}")


def numbers(prefix: pathlib.Path) -> list[int]:
    """Lists the numbers of the lease's existing files, ascending."""
    pattern = re.compile(re.escape(prefix.name) + r"\.lease-([1-9]\d*)")
    try:
        names = os.listdir(prefix.parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def _read(path: pathlib.Path) -> bytes | None:
    """Reads a file; None if it is missing or cannot be read now."""
    try:
        return path.read_bytes()[: 4 * RECORD_BYTES]
    except OSError:
        return None


def _id_in(path: pathlib.Path) -> str | None:
    owner = Owner.parse(_read(path) or b"")
    return owner and owner.id


def _clock() -> float:
    """Time in seconds, including time while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
