"""Continues from the newest checkpoint and saves without end, to be killed by a test.

Arguments: the checkpoints folder, and the moment at which it kills itself (or "never").
"""

import os
import pathlib
import signal
import sys
import time

import jax.numpy as jnp
import numpy as np
from etils import epath

from gkd.checkpoints import hashes
from gkd.checkpoints.store import CheckpointStore

SIZE = 1 << 21
FATAL_STEP = 4


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(moment: str) -> None:
    """Makes the process kill itself at the given moment of a save after step 3."""
    write_hashes = hashes.write_hashes
    path_class = type(epath.Path("/"))
    rmtree = path_class.rmtree

    def around_hashes(folder):
        if folder.name.startswith(f"{FATAL_STEP}."):
            if moment == "unhashed":
                die()
            write_hashes(folder)
            if moment == "hashed":
                die()
        write_hashes(folder)

    def half_delete(path, missing_ok=False):
        if path.exists() and moment == "half deleted":
            files = [name for name in pathlib.Path(path).rglob("*") if name.is_file()]
            max(files, key=lambda name: name.stat().st_size).unlink()
            die()
        rmtree(path, missing_ok=missing_ok)

    hashes.write_hashes = around_hashes
    path_class.rmtree = half_delete


def main(directory: str, moment: str) -> None:
    """Restores, checks that the state is of its step, then saves one step after the other."""
    store = CheckpointStore(directory)
    restored = store.restore({"params": jnp.zeros(SIZE)})
    step = 0
    if restored is not None:
        step = restored.step
        assert np.all(np.asarray(restored.state["params"]) == step)
        assert restored.data_state == b"%d" % step
    print(f"restored {step}", flush=True)
    arrange_death(moment)
    while True:
        step += 1
        store.save(step, {"params": jnp.full(SIZE, float(step))}, b"%d" % step)
        print(f"saved {step - 1}", flush=True)
        time.sleep(0.01)


main(*sys.argv[1:])
