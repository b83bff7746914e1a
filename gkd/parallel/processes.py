"""Multi-process jobs: joins the processes, names the one that writes files, agrees to stop."""

from __future__ import annotations

import errno
import glob
import os
import re
import socket
from collections.abc import Mapping
from typing import Any

from gkd.errors import InvalidValue, JobError
from gkd.parallel import job_messages

JOINED = "GKD_JOINED"  # file descriptor that tells the supervisor "joined"
# A job without a cluster manager sets these three (launch/local_multiprocess.sh).
COORDINATOR, PROCESSES, PROCESS_ID = "GKD_COORDINATOR", "GKD_PROCESSES", "GKD_PROCESS_ID"
HEARTBEAT = "GKD_HEARTBEAT_SECONDS"  # how long without a heartbeat until a process is lost
HEARTBEAT_SECONDS = 100
START = "GKD_START_SECONDS"  # timeout of the start: how long processes wait for each other
START_SECONDS = 300


def is_multiprocess(environment: Mapping[str, str]) -> bool:
    """Checks if this process belongs to a job that may have other processes; imports no JAX.

    Args:
      environment: environment variables of the process, `os.environ`.

    Returns:
      True where the environment configures a job (`GKD_COORDINATOR` and its siblings), under Slurm
      or Open MPI with more than one task, on GKE, and on a machine with TPUs, where JAX asks the
      cluster.
    """
    configured = any(name in environment for name in (COORDINATOR, PROCESSES, PROCESS_ID))
    if configured or environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return configured
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_COUNT")
    return (
        any(int(environment.get(name, "1") or 1) > 1 for name in tasks)
        or any(environment.get(name) for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"))
        or bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    )


def heartbeat_seconds(environment: Mapping[str, str]) -> int:
    """Returns the heartbeat timeout in seconds (GKD_HEARTBEAT_SECONDS, or 100).

    Args:
      environment: environment variables of the process.

    Raises:
      ValueError: the environment's value is not a positive whole number.
    """
    return _seconds(environment, HEARTBEAT, HEARTBEAT_SECONDS)


def start_seconds(environment: Mapping[str, str]) -> int:
    """Returns the seconds that processes wait for each other (GKD_START_SECONDS, or 300).

    Args:
      environment: environment variables of the process.

    Raises:
      ValueError: the environment's value is not a positive whole number.
    """
    return _seconds(environment, START, START_SECONDS)


def _seconds(environment, name, default):
    value = environment.get(name, str(default))
    if not value.isdecimal() or not int(value):
        raise InvalidValue(f"{name} is {value!r}: use whole seconds, 1 or more")
    return int(value)


def coordinator_from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Reads the job's coordinator from GKD_COORDINATOR, GKD_PROCESSES and GKD_PROCESS_ID.

    Args:
      environment: environment variables of the process.

    Returns:
      Arguments of `jax.distributed.initialize`; empty where none of the three is set.

    Raises:
      ValueError: one of the three is missing or malformed.

    >>> coordinator_from_environment({})
    {}
    >>> coordinator_from_environment(
    ...     {"GKD_COORDINATOR": "host0:1234", "GKD_PROCESSES": "2", "GKD_PROCESS_ID": "1"}
    ... )
    {'coordinator_address': 'host0:1234', 'num_processes': 2, 'process_id': 1}
    """
    names = COORDINATOR, PROCESSES, PROCESS_ID
    if not any(name in environment for name in names):
        return {}
    address, count, number = (environment.get(name, "") for name in names)
    port = re.fullmatch(r".+:(\d+)", address)
    if not port or not 0 < int(port.group(1)) < 2**16:
        raise InvalidValue(
            f"{COORDINATOR} is {address!r}: use HOST:PORT of process 0, a port that is free there"
        )
    if not (count.isdecimal() and number.isdecimal()) or int(number) >= int(count):
        raise InvalidValue(
            f"{COORDINATOR} is set, {PROCESSES} is {count!r} and {PROCESS_ID} {number!r}: set a "
            "number of processes, and this one's below it"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(number),
    }


def join(environment: Mapping[str, str]) -> None:
    """Connects this process with the others of its job, before JAX initialises its devices.

    Args:
      environment: environment variables of the process.

    Raises:
      ValueError: the environment's coordinator is incomplete.
      ConnectionError: process 0 cannot listen on its port.
    """
    import jax

    coordinator = coordinator_from_environment(environment)
    if coordinator.get("process_id") == 0:
        _check_port(coordinator["coordinator_address"])
    jax.distributed.initialize(
        heartbeat_timeout_seconds=heartbeat_seconds(environment),
        initialization_timeout=start_seconds(environment),
        **coordinator,
    )
    job_messages.watch_for_failures()
    if JOINED in environment:
        os.write(int(environment[JOINED]), b"1")


def _check_port(address: str) -> None:
    """Raises ConnectionError for an occupied port, which crashes JAX in some cases."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("::", int(address.rpartition(":")[2])))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise JobError(
                f"{COORDINATOR} is {address}, but another program of this host listens on that "
                "port: use a free one"
            ) from error


def is_primary_process() -> bool:
    """Checks if this is process 0, which writes the job's files and prints."""
    import jax

    return jax.process_index() == 0


def broadcast_from_primary(value: bool) -> bool:
    """Broadcasts the primary process's value to all processes, each of which must call this.

    Needed for facts about a shared folder: another host may see a new file later.

    Args:
      value: this process's value, ignored except in process 0.

    Returns:
      The value of process 0.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


class Agreement:
    """A logical or over all processes, one call late so that no process waits for it."""

    def __init__(self, mesh: Any) -> None:
        """Compiles the reduction.

        Args:
          mesh: mesh with a `data` axis, over the devices of all processes.
        """
        import jax
        import jax.numpy as jnp
        from jax.sharding import NamedSharding, PartitionSpec

        self._single_process = jax.process_count() == 1
        # One value per device: the devices of a model axis may belong to different processes.
        self._per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._size = mesh.size
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: Any = None

    def poll(self, value: bool) -> bool:
        """Contributes a value; every process must call this equally often.

        Args:
          value: this process's value.

        Returns:
          The same in all processes: the or of the values of the previous call (of this call where
          the job has one process).
        """
        if self._single_process:
            return value
        import jax
        import numpy as np

        def local_values(index):
            return np.full(len(range(*index[0].indices(self._size))), value)

        previous = self._pending
        self._pending = self._any(
            jax.make_array_from_callback((self._size,), self._per_device, local_values)
        )
        return previous is not None and bool(previous)
