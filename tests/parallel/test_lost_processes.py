"""Errors that a lost process causes in another one, and errors of the process's own."""

import errno
import types

import jax
import pytest

from gkd.errors import OutOfMemory, StorageError
from gkd.parallel import job_messages, lost_processes

# As JAX 0.10.2 on CPUs raised them when one of three processes was killed.
BROKEN = [
    "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error "
    "[127.0.0.1]:51365: Connection reset by peer",
    "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection "
    "closed by peer [127.0.0.1]:37003",
    "UNKNOWN: Gloo all-gather failed: [external/gloo/gloo/transport/tcp/pair.cc:419] writev "
    "[127.0.0.1]:21013: Broken pipe",
    "INTERNAL: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/unbound_buffer.cc:78] "
    "Timed out waiting 30000ms for recv operation to complete",
    "UNAVAILABLE: Socket closed\nAdditional GRPC error information from remote target",
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted",
    "INTERNAL: Barrier failed because: task is set to ERROR: UNAVAILABLE: Task 2 heartbeat timeout",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n2",
]
OWN = [
    "INTERNAL: Gloo all-reduce failed: [enforce fail at allreduce.cc:31] opts.elements. 24 vs 8",
    "INVALID_ARGUMENT: Executable expected parameter 0 of size 64 but got buffer with size 32",
    "DEADLINE_EXCEEDED: Barrier timed out. Id: x::0. # of tasks that reached the barrier: 2/3.",
    "a table says: Connection reset by peer",
]


class Coordinator:
    """A key-value store as that of JAX's coordination service, of a job of three processes."""

    def __init__(self, alive):
        self.rows, self._alive, self.reachable = {}, alive, True

    def key_value_set(self, key, value):
        if key in self.rows:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
        self.rows[key] = value
        if key.endswith("roll_call"):
            self.rows |= {f"gkd/present/{number}": "" for number in self._alive}

    def key_value_dir_get(self, folder):
        if not self.reachable:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")
        return [(key, value) for key, value in self.rows.items() if key.startswith(f"{folder}/")]


@pytest.fixture
def job(monkeypatch):
    """Makes this process number 1 of three; the waiting for a silent one is short."""

    def start(alive):
        coordinator = Coordinator(alive)
        state = types.SimpleNamespace(client=coordinator, num_processes=3, process_id=1)
        monkeypatch.setattr("jax._src.distributed.global_state", state)
        monkeypatch.setattr(lost_processes, "_ANSWER_SECONDS", 0.02)
        monkeypatch.setattr(lost_processes, "_MARGIN_SECONDS", -0.98)
        monkeypatch.setattr(job_messages, "_POLL_SECONDS", 0.01)
        return coordinator

    return start


def find_loss(error):
    return lost_processes.find_loss(error, {"GKD_HEARTBEAT_SECONDS": "1"})


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])  # in `jit`, and outside
def test_a_broken_connection_names_the_silent_process(text, kind, job):
    job(alive={0})
    loss = find_loss(kind(text))
    assert loss.line.startswith(f"process 2 of the job was lost ({' '.join(text.split())[:60]}")
    assert loss.line.endswith(
        "): start all of them again: the run continues from its last checkpoint"
    )
    assert loss.silent == {2} and len(loss.line) < 400


def test_several_lost_processes_and_a_connection_that_broke_between_live_ones(job):
    job(alive=set())
    assert find_loss(ValueError(BROKEN[0])).line.startswith("processes 0, 2 of the job were lost (")
    job(alive={0, 2})
    loss = find_loss(ValueError(BROKEN[0]))
    assert loss.line.startswith("a connection between processes of the job broke (UNKNOWN: Gloo ")
    assert loss.silent == set()


def test_a_save_that_failed_for_a_broken_connection_is_a_loss(job):
    job(alive={0})
    try:
        try:
            raise jax.errors.JaxRuntimeError(BROKEN[6])
        except jax.errors.JaxRuntimeError as cause:
            raise StorageError(f"saving step 8 failed: {cause}") from cause
    except StorageError as error:
        assert find_loss(error).silent == {2}


@pytest.mark.parametrize("text", OWN)
@pytest.mark.parametrize("alive", [{0, 2}, {0}])
def test_another_error_is_the_process_s_own(text, alive, job):
    """Also where one is silent for longer than JAX takes to end this process: it is alive."""
    job(alive)
    assert find_loss(jax.errors.JaxRuntimeError(text)) is None


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
        OutOfMemory("no room"),
        FileNotFoundError(errno.ENOENT, "no file"),
    ],
)
def test_an_error_that_the_user_can_mend_asks_nobody(error, job):
    coordinator = job(alive={0})
    assert find_loss(error) is None
    assert coordinator.rows == {}


def test_an_unreachable_coordinator_is_lost(job):
    job(alive={0}).reachable = False
    assert find_loss(jax.errors.JaxRuntimeError(OWN[1])).silent == {0}
    assert find_loss(ValueError(BROKEN[0])).line.startswith(
        "process 0 of the job was lost (UNKNOWN"
    )


def test_a_second_roll_call_uses_the_first_and_one_that_ended_is_not_silent(job):
    coordinator = job(alive=set())
    coordinator.rows |= {"gkd/alerts/roll_call": "0", "gkd/present/0": "", "gkd/ended/2": ""}
    assert job_messages.roll_call(0.02) == set()


def test_a_single_process_is_never_lost():
    assert find_loss(ValueError(BROKEN[0])) is None
