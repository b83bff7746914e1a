"""One of two processes that share a batch over odd meshes; `python rows_program.py PORT NUMBER`."""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gkd.parallel import mesh as meshes
from gkd.parallel import processes

BATCH = np.arange(48).reshape(16, 3)


ALL = set(range(16))


def meshes_of(devices):
    """Meshes, and the rows of the first process; those of the second are the others, or all too."""
    alternating = [devices[i] for i in (0, 1, 4, 5, 2, 3, 6, 7)]
    for grid, rows in (
        (np.reshape(devices, (8, 1)), set(range(8))),
        (np.reshape(alternating, (8, 1)), {0, 1, 2, 3, 8, 9, 10, 11}),
        (np.reshape(alternating, (2, 4)), ALL),
        (np.reshape(devices, (2, 4)).T, ALL),
        (np.reshape(devices, (1, 8)), ALL),
    ):
        yield Mesh(grid, ("data", "model")), rows


def main(port, number):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
    for mesh, rows in meshes_of(jax.devices()):
        own = meshes.own_rows(mesh, len(BATCH))
        assert own.tolist() == sorted(rows if number == 0 else ALL - rows or ALL), own
        placed = meshes.place_batch(BATCH[own], mesh)
        np.testing.assert_array_equal(meshes.local_rows(placed), BATCH[own])
        whole = multihost_utils.process_allgather(placed, tiled=True)
        np.testing.assert_array_equal(whole, BATCH)
        # Only the second process says yes; both hear it one call later, and then no more.
        agreement = processes.Agreement(mesh)
        heard = [agreement.poll(number == 1 and call == 1) for call in range(4)]
        assert heard == [False, False, True, False], heard
    assert processes.broadcast_from_primary(number == 0)
    assert not processes.broadcast_from_primary(number == 1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
