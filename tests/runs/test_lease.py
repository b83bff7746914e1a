"""The lease on an output: with real processes that are killed, suspended, and raced."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gkd.configuration.gin_files import REPOSITORY
from gkd.runs import lease, lease_owner
from gkd.runs.lease import Lease, LeaseHeld, LeaseLost, file_of, numbers

# Takes the lease, says so, and checks it until it is lost or its input ends.
HOLDER = """
import pathlib, select, sys
from gkd.runs.lease import Lease, LeaseHeld, LeaseLost
try:
    with Lease(pathlib.Path("out"), "OUTPUT out") as held:
        print("held", flush=True)
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            held.check()
except (LeaseHeld, LeaseLost) as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    monkeypatch.setenv("GKD_LEASE_SECONDS", "1")
    return tmp_path / "out"


@pytest.fixture
def holder(prefix):
    """Function that starts a process which takes the lease; they end with the test."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=prefix.parent, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        started.append(process)
        process.said = process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def owner_elsewhere(**changes):
    """An owner on another host."""
    owner = lease_owner.Owner.this_process()
    return dataclasses.replace(owner, **{"id": "x", "host": "another", "pid": 12} | changes)


def taking(prefix):
    """Seconds until the lease was taken, and who held it then."""
    began = time.monotonic()
    with Lease(prefix, "OUTPUT out"):
        return time.monotonic() - began, numbers(prefix)


def test_the_second_launch_is_refused_in_words_that_name_the_first(holder, prefix):
    first = holder()
    assert first.said == "held\n"
    with pytest.raises(LeaseHeld) as refusal:
        Lease(prefix, "OUTPUT out").take()
    message = str(refusal.value)
    host = lease_owner.socket.gethostname()
    assert message.startswith("OUTPUT out is in use by another launch") and "\n" not in message
    assert f"host {host}, process {first.pid}, since 20" in message
    assert holder().said.startswith("LeaseHeld OUTPUT out is in use")
    first.communicate("")
    assert numbers(prefix) == []  # nothing is left
    assert holder().said == "held\n"


def test_a_killed_owner_is_followed_at_once(holder, prefix, monkeypatch):
    monkeypatch.setenv("GKD_LEASE_SECONDS", "60")
    first = holder()
    first.kill()
    time.sleep(0.05)
    assert taking(prefix)[0] < 1  # while it is a zombie, which no signal tells from the living
    first = holder()
    first.kill()
    first.wait()
    seconds, held = taking(prefix)
    assert seconds < 1 and held == [2]
    assert numbers(prefix) == []


def test_a_suspended_owner_of_this_host_still_owns(holder, prefix):
    first = holder()
    first.send_signal(signal.SIGSTOP)
    time.sleep(1.3)  # longer than an owner elsewhere may be silent
    with pytest.raises(LeaseHeld, match=rf"process {first.pid} \(suspended\)"):
        Lease(prefix, "OUTPUT out").take()
    first.send_signal(signal.SIGCONT)
    first.communicate("")
    assert first.stdout.closed or numbers(prefix) == []


def test_an_owner_that_was_taken_over_ends(holder, prefix, monkeypatch):
    first = holder()
    first.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(lease_owner.socket, "gethostname", lambda: "elsewhere")
    seconds, _ = taking(prefix)
    assert 0.9 < seconds < 5
    with Lease(prefix, "OUTPUT out") as second:
        first.send_signal(signal.SIGCONT)
        said = first.stdout.readline()
        assert said.startswith("LeaseLost OUTPUT out was taken over")
        first.wait()
        time.sleep(0.3)
        second.check()  # the first one did not take it along
        assert len(numbers(prefix)) == 1


def test_a_suspended_owner_notices_before_its_next_write(prefix, monkeypatch):
    """Without the help of its thread, which may wake up later."""
    monkeypatch.setattr(lease, "_FIRST_BEAT_SECONDS", 99)
    monkeypatch.setattr(lease, "_BEATS", 0.01)  # the thread sleeps for 100 s
    first = Lease(prefix, "OUTPUT out")
    first.take()
    first.check()
    successor = dataclasses.replace(owner_elsewhere(), previous=first._owner.id)
    file_of(prefix, 2).write_bytes(successor.record(0))
    first.check()  # looked at a moment ago
    first._verified -= 1000
    with pytest.raises(LeaseLost, match="taken over by another launch .host another, process 12"):
        first.check()
    first._ended.set()
    first.release()
    assert file_of(prefix, 2).exists()


def test_a_silent_owner_elsewhere_is_followed_after_a_while(prefix, capsys):
    file_of(prefix, 3).write_bytes(owner_elsewhere(since="2999-01-01T00:00:00+00:00").record(7))
    seconds, held = taking(prefix)
    assert 0.9 < seconds < 4 and held == [4]
    (line,) = capsys.readouterr().err.splitlines()
    assert "was in use by host another, process 12" in line and "up to 1 s" in line


def test_an_owner_elsewhere_that_beats_keeps_it(prefix):
    owner, ended = owner_elsewhere(seconds=30), threading.Event()

    def beat():
        for number in range(1000):
            file_of(prefix, 1).write_bytes(owner.record(number))
            if ended.wait(0.7):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    try:
        with pytest.raises(LeaseHeld, match="host another, process 12"):
            Lease(prefix, "OUTPUT out").take()
    finally:
        ended.set()
        thread.join()
    assert time.monotonic() - began < 5  # its first beat is enough


def test_a_later_process_of_the_same_number_is_not_the_owner(prefix):
    owner = dataclasses.replace(lease_owner.Owner.this_process(), pid=os.getppid(), started="1")
    file_of(prefix, 1).write_bytes(owner.record(0))
    assert taking(prefix)[0] < 0.5


@pytest.mark.parametrize("kind", ["folder", "link to itself", "link to nothing"])
@pytest.mark.parametrize("number", [1, 5])
def test_what_cannot_be_read_as_a_lease_is_refused_in_one_line(prefix, kind, number):
    path = file_of(prefix, number)
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "link to itself" else "nothing")
    errors = []

    def take():
        try:
            Lease(prefix, "OUTPUT out").take()
        except OSError as error:
            errors.append(str(error))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert len(errors) == 1 and f"{path} (" in errors[0] and "move it away" in errors[0]
    assert numbers(prefix) == [number]


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"[1]", b'{"id": 3}', b"\xff\xfe", b"[" * 4000, b"x" * 9000]
)
def test_a_damaged_file_is_no_lease_for_ever(prefix, content):
    file_of(prefix, 1).write_bytes(content)
    seconds, _ = taking(prefix)
    assert 0.9 < seconds < 4 and numbers(prefix) == []


RACE = """
import os, pathlib, sys, time
from gkd.runs import lease
for round in range(int(sys.argv[1])):
    prefix = pathlib.Path(f"out{round}")
    gone = os.fork()
    if not gone:  # an owner that dies with its lease
        lease.Lease(prefix, "OUTPUT").take()
        os._exit(0)
    os.waitpid(gone, 0)
    answers, told = os.pipe()
    end, ended = os.pipe()  # who got the lease holds it until everybody has looked
    begin, children = time.time() + 0.05, []
    for number in range(6):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.close(ended)
        time.sleep(max(0, begin - time.time()))
        try:
            lease.Lease(prefix, "OUTPUT").take()
            os.write(told, b"1")
            os.read(end, 1)
            os._exit(0)
        except lease.LeaseHeld:
            os.write(told, b"0")
            os._exit(1)
    heard = b""
    while len(heard) < 6:
        heard += os.read(answers, 6)
    for descriptor in (answers, told, end, ended):
        os.close(descriptor)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(codes.count(0), codes.count(1))
"""


def test_one_of_many_gets_what_a_dead_process_held(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RACE), "8"], cwd=tmp_path, text=True,
        capture_output=True, env=environment,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["1 5"] * 8, done.stderr


def test_a_mount_that_gives_a_file_to_two_makers_is_noticed(prefix, monkeypatch):
    """As Cloud Storage FUSE: O_EXCL holds on one host only, the last to close wins."""
    sync = os.fsync

    def another_was_later(descriptor):
        sync(descriptor)
        file_of(prefix, 1).write_bytes(owner_elsewhere(seconds=30).record(time.time_ns()))

    monkeypatch.setattr(lease.os, "fsync", another_was_later)
    monkeypatch.setattr(lease.time, "sleep", lambda _: another_was_later(file.fileno()))
    with (prefix.parent / "any").open("w") as file, pytest.raises(LeaseHeld, match="host another"):
        Lease(prefix, "OUTPUT out").take()


def test_a_full_disk_is_one_line_and_leaves_nothing(prefix, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lease.os, "write", full)
    with pytest.raises(OSError, match=r"cannot write .*out.lease-1 \(No space left on device\)"):
        Lease(prefix, "OUTPUT out").take()
    assert numbers(prefix) == []


def test_a_failure_after_the_loss_is_reported_as_the_loss(prefix):
    with pytest.raises(LeaseLost, match="its file is gone"), Lease(prefix, "OUTPUT out"):
        file_of(prefix, 1).unlink()
        raise ValueError("no array metadata found")


def test_the_environments_seconds(monkeypatch, prefix):
    monkeypatch.setenv("GKD_LEASE_SECONDS", "soon")
    with pytest.raises(ValueError, match="GKD_LEASE_SECONDS is 'soon'"):
        Lease(prefix, "OUTPUT out").take()
