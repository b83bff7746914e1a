"""Runs a compiled program over many inputs, in full batches of a few padded lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gkd.data.length_buckets import batches_of_like_length
from gkd.errors import InvalidValue
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel


class BatchedProgram:
    """Runs a program over many prompts: full batches, one compilation per length, one ahead."""

    def __init__(
        self,
        function: Callable[..., Any],
        loaded: LoadedModel,
        mesh: Mesh,
        buckets: Sequence[int],
        batch_size: int,
    ) -> None:
        """Prepares the program; nothing is compiled yet.

        Args:
          function: (params, shared, inputs [B, S], *row arrays [B, …]) -> arrays [B, …].
          loaded: the model whose parameters it runs on.
          mesh: device mesh to which the model is bound.
          buckets: lengths that inputs are padded to, ascending.
          batch_size: B, inputs per batch, over all devices of all hosts.

        Raises:
          ValueError: the batch does not divide over the devices.
        """
        shards = mesh.shape["data"]
        if batch_size < 1 or batch_size % shards:
            raise InvalidValue(
                f"batch_size {batch_size} does not divide over {shards} devices: use a multiple"
            )
        self._mesh = mesh
        self._padding_id = loaded.model.special_ids.padding
        self._buckets, self._batch_size = tuple(buckets), batch_size
        rows, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
        self.compiled = jax.jit(
            lambda params, shared, batch: function(params, shared, *batch),
            in_shardings=(loaded.shardings, whole, rows),
            out_shardings=rows,
        )
        self.lengths_run: set[int] = set()

    def lower(self, params: Any, shared: Any, batch: tuple[Any, ...]) -> Any:
        """Lowers the program for the shapes of one batch, for inspection."""
        return self.compiled.lower(params, shared, batch)

    def run(
        self,
        params: Any,
        shared: Any,
        inputs: Sequence[Sequence[int]],
        rows_of: Callable[[Sequence[int]], tuple[np.ndarray, ...]],
    ) -> Iterator[tuple[list[int], Any]]:
        """Runs the program over all inputs, grouped by length; every host passes the same inputs.

        Args:
          params: parameters of the model on the mesh.
          shared: pytree that all rows share, such as a key.
          inputs: token ids through EOS, each at most as long as the last bucket.
          rows_of: function of the positions of a full batch's inputs to its further row arrays.

        Yields:
          (positions in `inputs`, the program's arrays on the host, whose first rows belong to
          them).
        """
        pending = None
        host_rows = meshes.own_rows(self._mesh, self._batch_size)
        sizes = [len(tokens) for tokens in inputs]
        for length, positions in batches_of_like_length(sizes, self._buckets, self._batch_size):
            # Batches are always full, so that the program is the same. They are filled up with a
            # real input: an empty one might generate up to the limit and delay the loop.
            filled = positions + [positions[-1]] * (self._batch_size - len(positions))
            batch = (
                padded([inputs[i] for i in filled], length, self._padding_id),
                *rows_of(filled),
            )
            self.lengths_run.add(length)
            placed = meshes.place_batch(jax.tree.map(lambda x: x[host_rows], batch), self._mesh)
            running = self.compiled(params, shared, placed)
            if pending is not None:  # read while the device works on the next batch
                yield pending[0], to_host(pending[1])
            pending = (positions, running)
        if pending is not None:
            yield pending[0], to_host(pending[1])


def padded(rows: Sequence[Sequence[int]], length: int, padding_id: int = 0) -> np.ndarray:
    """Pads rows of token ids to one array.

    Args:
      rows: token ids of every row.
      length: length to pad to.
      padding_id: id after the end of each row.

    Returns:
      int32 [rows, length].

    >>> padded([[5, 1], []], 3).tolist()
    [[5, 1, 0], [0, 0, 0]]
    """
    array = np.full((len(rows), length), padding_id, np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def to_host(tree: Any) -> Any:
    """Copies whole arrays to this host, including shards of other hosts.

    Args:
      tree: pytree of arrays.

    Returns:
      The same pytree of NumPy arrays.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
