"""The processes of a job on several hosts: joining them, who writes files, agreeing to stop."""

from __future__ import annotations

import glob
import os
from typing import Any

# Where a job is described by hand (launch/local_multiprocess.sh); clusters are recognised.
COORDINATOR, PROCESSES, PROCESS_ID = "GKD_COORDINATOR", "GKD_PROCESSES", "GKD_PROCESS_ID"
HEARTBEAT = "GKD_HEARTBEAT_SECONDS"  # a process that is silent for so long is lost
HEARTBEAT_SECONDS = 100


def several() -> bool:
    """Whether this process belongs to a job that may have more; does not import JAX.

    By hand (`GKD_COORDINATOR` and the like), under Slurm or Open MPI with several tasks, on GKE, or
    on a machine with TPUs, where JAX asks the cluster.
    """
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return COORDINATOR in os.environ
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_COUNT")
    return (
        COORDINATOR in os.environ
        or any(int(os.environ.get(name, "1") or 1) > 1 for name in tasks)
        or bool(os.environ.get("TPU_WORKER_HOSTNAMES"))
        or bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    )


def heartbeat_seconds() -> int:
    """After how long a silent process is taken to be lost.

    Raises:
      ValueError: the environment's value is no number of seconds.
    """
    value = os.environ.get(HEARTBEAT, str(HEARTBEAT_SECONDS))
    if not value.isdigit() or not int(value):
        raise ValueError(f"{HEARTBEAT} is {value!r}: use whole seconds, 1 or more")
    return int(value)


def join() -> None:
    """Connects this process with the others of its job, before anything asks for devices.

    Raises:
      ValueError: the job's description by hand is not complete.
    """
    import jax

    given: dict[str, Any] = {}
    if COORDINATOR in os.environ:
        numbers = [os.environ.get(name, "") for name in (PROCESSES, PROCESS_ID)]
        if not all(number.isdigit() for number in numbers) or int(numbers[1]) >= int(numbers[0]):
            raise ValueError(
                f"{COORDINATOR} is set, {PROCESSES} is {numbers[0]!r} and {PROCESS_ID} "
                f"{numbers[1]!r}: set a number of processes, and this one's below it"
            )
        given = {
            "coordinator_address": os.environ[COORDINATOR],
            "num_processes": int(numbers[0]),
            "process_id": int(numbers[1]),
        }
    jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds(), **given)


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
