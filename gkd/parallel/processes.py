"""The processes of a job on several hosts: joining them, who writes files, agreeing to stop."""

from __future__ import annotations

import errno
import glob
import os
import re
import socket
from typing import Any

from gkd.parallel import job_messages

JOINED = "GKD_JOINED"  # where a process tells its watcher that it has found the others
# Where a job is described by hand (launch/local_multiprocess.sh); clusters are recognised.
COORDINATOR, PROCESSES, PROCESS_ID = "GKD_COORDINATOR", "GKD_PROCESSES", "GKD_PROCESS_ID"
HEARTBEAT = "GKD_HEARTBEAT_SECONDS"  # a process that is silent for so long is lost
HEARTBEAT_SECONDS = 100
START = "GKD_START_SECONDS"  # how long processes wait for each other at the start
START_SECONDS = 300


def several() -> bool:
    """Whether this process belongs to a job that may have more; does not import JAX.

    By hand (`GKD_COORDINATOR` and the like), under Slurm or Open MPI with several tasks, on GKE, or
    on a machine with TPUs, where JAX asks the cluster.
    """
    by_hand = any(name in os.environ for name in (COORDINATOR, PROCESSES, PROCESS_ID))
    if by_hand or os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return by_hand
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_COUNT")
    return (
        any(int(os.environ.get(name, "1") or 1) > 1 for name in tasks)
        or any(os.environ.get(name) for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
        or bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    )


def heartbeat_seconds() -> int:
    """After how long a silent process is taken to be lost.

    Raises:
      ValueError: the environment's value is no number of seconds.
    """
    return _seconds(HEARTBEAT, HEARTBEAT_SECONDS)


def start_seconds() -> int:
    """How long a process waits for the others of its job to come.

    Raises:
      ValueError: the environment's value is no number of seconds.
    """
    return _seconds(START, START_SECONDS)


def _seconds(name, default):
    value = os.environ.get(name, str(default))
    if not value.isdigit() or not int(value):
        raise ValueError(f"{name} is {value!r}: use whole seconds, 1 or more")
    return int(value)


def described() -> dict[str, Any]:
    """The job as it is described by hand: what `jax.distributed.initialize` takes, or nothing.

    Raises:
      ValueError: the description is not complete, or makes no sense.
    """
    names = COORDINATOR, PROCESSES, PROCESS_ID
    if not any(name in os.environ for name in names):
        return {}
    address, count, number = (os.environ.get(name, "") for name in names)
    port = re.fullmatch(r".+:(\d+)", address)
    if not port or not 0 < int(port.group(1)) < 2**16:
        raise ValueError(
            f"{COORDINATOR} is {address!r}: use HOST:PORT of process 0, a port that is free there"
        )
    if not (count.isdigit() and number.isdigit()) or int(number) >= int(count):
        raise ValueError(
            f"{COORDINATOR} is set, {PROCESSES} is {count!r} and {PROCESS_ID} {number!r}: set a "
            "number of processes, and this one's below it"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
    }


def join() -> None:
    """Connects this process with the others of its job, before anything asks for devices.

    Raises:
      ValueError: the job's description by hand is not complete.
      ConnectionError: process 0 cannot listen on its port.
    """
    import jax

    given = described()
    if given.get("process_id") == 0:
        _check_port(given["coordinator_address"])
    jax.distributed.initialize(
        heartbeat_timeout_seconds=heartbeat_seconds(),
        initialization_timeout=start_seconds(),
        **given,
    )
    job_messages.watch_for_failures()
    if JOINED in os.environ:
        os.write(int(os.environ[JOINED]), b"1")


def _check_port(address: str) -> None:
    """Says that process 0's port is taken, which JAX does not survive in every case."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("::", int(address.rpartition(":")[2])))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConnectionError(
                f"{COORDINATOR} is {address}, but another program of this host listens on that "
                "port: use a free one"
            ) from error


def is_first() -> bool:
    """Whether this process writes the job's files and speaks for it."""
    import jax

    return jax.process_index() == 0


def first_decides(yes: bool) -> bool:
    """The first process's answer, in every process; all of them ask.

    For what is read of a shared folder: another host may see a file later.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return yes
    return bool(multihost_utils.broadcast_one_to_all(np.int32(yes)))


class Agreement:
    """Whether any process of the job says yes, without waiting for the answer."""

    def __init__(self, mesh: Any) -> None:
        """Prepares.

        Args:
          mesh: with a `data` axis, over all processes.
        """
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        self._alone = jax.process_count() == 1
        # One answer a device: those along the model axis may be of several processes.
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._running: Any = None

    def poll(self, yes: bool) -> bool:
        """Says yes or no; every process calls it equally often.

        Returns:
          The same in all: whether any said yes, where they are several at the call before.
        """
        if self._alone:
            return yes
        import jax
        import numpy as np

        def own(index):
            return np.full(len(range(*index[0].indices(self._size))), yes)

        previous = self._running
        self._running = self._any(jax.make_array_from_callback((self._size,), self._each, own))
        return previous is not None and bool(previous)
