"""Outputs for many inputs: a few compiled lengths, full batches, results in the inputs' order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from gkd.decode.sampling import sample
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import token_log_prob
from gkd.distill.teacher_top_k import most_probable_ids
from gkd.errors import InvalidValue
from gkd.infer.decode_options import Decoding
from gkd.models.interface import ProjectedLogits
from gkd.models.scoring import score_tokens
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from gkd.vocabularies import vocabularies

SHORTEST_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class Output:
    """What the model wrote for one input.

    Attributes:
      tokens: one list of ids for each of its samples, through EOS. It is empty where a beam search
        found fewer outputs than asked for.
      log_probs: the log-probability of each, over the usable ids; −inf for an empty one.
      target_log_probs: of every token of the input's target under the raw logits, if asked for.
      target_top_ids, target_top_log_probs: the K most probable usable ids at each of them, best
        first, and their log-probabilities over the usable ids, if asked for.
    """

    tokens: list[list[int]]
    log_probs: list[float]
    target_log_probs: list[float] | None = None
    target_top_ids: list[list[int]] | None = None
    target_top_log_probs: list[list[float]] | None = None


def length_buckets(longest: int) -> tuple[int, ...]:
    """The lengths that inputs are padded to: 32, 64, 128, … and `longest`."""
    buckets = []
    length = SHORTEST_BUCKET
    while length < longest:
        buckets.append(length)
        length *= 2
    return (*buckets, longest)


def plan(
    lengths: Sequence[int], buckets: Sequence[int], batch_size: int
) -> list[tuple[int, list[int]]]:
    """Batches of inputs of like length, as few as possible, the longest first.

    Args:
      lengths: tokens of every input, none above the last bucket.
      buckets: ascending lengths.
      batch_size: inputs a batch.

    Returns:
      Of each batch the length it is padded to, and the numbers of its inputs; only the last batch
      may have fewer than `batch_size`.
    """
    bucket_of = [next(bucket for bucket in buckets if length <= bucket) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda number: -bucket_of[number])  # stable
    parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [(bucket_of[part[0]], part) for part in parts]


class BatchedProgram:
    """A program over many prompts: full batches, one compilation a length, one batch ahead."""

    def __init__(
        self,
        function: Callable[..., Any],
        loaded: LoadedModel,
        mesh: Mesh,
        rules: Mapping[str, str | None],
        buckets: Sequence[int],
        batch_size: int,
    ) -> None:
        """Prepares; nothing is compiled yet.

        Args:
          function: (params, shared, inputs [B, S], *row arrays [B, …]) -> arrays [B, …].
          loaded: the model whose parameters it runs on.
          mesh, rules: where it runs.
          buckets: the lengths that inputs are padded to, ascending.
          batch_size: B, inputs a batch, over all devices of all hosts.

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
        """Lowers the program for one batch's shapes, for inspection."""
        return self.compiled.lower(params, shared, batch)

    def run(
        self,
        params: Any,
        shared: Any,
        inputs: Sequence[Sequence[int]],
        rows_of: Callable[[Sequence[int]], tuple[np.ndarray, ...]],
    ) -> Iterator[tuple[list[int], Any]]:
        """Runs over all inputs, similar lengths together; every host passes the same ones.

        Args:
          params: the model's parameters on the mesh.
          shared: a pytree of what all rows share, such as a key.
          inputs: token ids through EOS, each at most as long as the last bucket.
          rows_of: (positions of a full batch's inputs) -> the program's further row arrays.

        Yields:
          (positions in `inputs`, the program's arrays on the host, whose first rows are theirs).
        """
        pending = None
        own = meshes.own_rows(self._mesh, self._batch_size)
        sizes = [len(tokens) for tokens in inputs]
        for length, part in plan(sizes, self._buckets, self._batch_size):
            # A batch is always full, so that the program is the same. What fills it is a real
            # input: an empty one might write to the end, and the loop would wait for it.
            filled = part + [part[-1]] * (self._batch_size - len(part))
            batch = (
                padded([inputs[i] for i in filled], length, self._padding_id),
                *rows_of(filled),
            )
            self.lengths_run.add(length)
            placed = meshes.place_batch(jax.tree.map(lambda x: x[own], batch), self._mesh)
            running = self.compiled(params, shared, placed)
            if pending is not None:  # the device works on this batch while that one is read
                yield pending[0], to_host(pending[1])
            pending = (part, running)
        if pending is not None:
            yield pending[0], to_host(pending[1])


class Generator:
    """A model that writes outputs; it compiles once for every length that its inputs have."""

    def __init__(
        self,
        loaded: LoadedModel,
        mesh: Mesh,
        rules: Mapping[str, str | None],
        valid: Any,
        decoding: Decoding,
        buckets: Sequence[int],
        batch_size: int,
        score: bool = False,
        top_k_log_probs: int = 0,
    ) -> None:
        """Prepares; nothing is compiled yet.

        Args:
          loaded: the model, its parameters on the mesh.
          mesh, rules: where it runs.
          valid: bool [V], ids that may be written.
          decoding: how outputs are written.
          buckets: the lengths that inputs are padded to, ascending.
          batch_size: inputs a batch, over all devices.
          score: also give the log-probabilities of the targets' tokens.
          top_k_log_probs: with `score`, how many of the most probable ids to give at each of the
            targets' tokens; 0 is none.

        Raises:
          ValueError: the batch does not divide over the devices, or fewer ids are usable.
        """
        usable = int(np.sum(np.asarray(valid)))
        if top_k_log_probs > usable:
            raise InvalidValue(
                f"top_k_log_probs is {top_k_log_probs}, but only {usable} ids can be written: use "
                f"{usable} or fewer"
            )
        self._top_k = top_k_log_probs
        self._loaded, self._mesh, self._shards = loaded, mesh, mesh.shape["data"]
        self._valid, self.decoding, self._score = jnp.asarray(valid), decoding, score
        self._batched = BatchedProgram(self._program, loaded, mesh, rules, buckets, batch_size)
        self._compiled = self._batched.compiled
        self._batch_size = batch_size

    @property
    def programs(self) -> int:
        """How many programs have been compiled."""
        return len(self._batched.lengths_run)

    def outputs(
        self,
        inputs: Sequence[Sequence[int]],
        first_number: int = 0,
        targets: Sequence[Sequence[int]] | None = None,
        params: Any = None,
    ) -> Iterator[list[tuple[int, Output]]]:
        """Writes outputs for some inputs, batch by batch, similar lengths together.

        The noise of a sample comes from the seed and its global number, (number of the input)·N +
        sample: how inputs are cut into calls and batches changes nothing.

        Args:
          inputs: token ids through EOS, each at most as long as the last bucket.
          first_number: the global number of the first input.
          targets: token ids of the targets, at most max_length each, where they are scored.
          params: the parameters to write with, on the mesh; None is the loaded model's own.

        Yields:
          (position in `inputs`, output) of the inputs of one batch.
        """
        length = self.decoding.max_length if self._score else 0
        padding = self._loaded.model.special_ids.padding

        def rows_of(positions):
            scored = [targets[i] if self._score else [] for i in positions]
            numbers = np.asarray([first_number + i for i in positions], np.int64)
            return padded(scored, length, padding), numbers.astype(np.int32)

        params = self._loaded.params if params is None else params
        key = jax.random.PRNGKey(self.decoding.seed)
        for part, arrays in self._batched.run(params, key, inputs, rows_of):
            yield self._finish(part, arrays, targets)

    def lower(self, length: int) -> Any:
        """Lowers the program for inputs of a length, from shapes alone, for inspection."""

        def tokens(*shape):
            return jax.ShapeDtypeStruct((self._batch_size, *shape), "int32")

        scored = self.decoding.max_length if self._score else 0
        key = jax.eval_shape(jax.random.PRNGKey, 0)
        batch = (tokens(length), tokens(scored), tokens())
        return self._batched.lower(self._loaded.shapes, key, batch)

    def _finish(self, part, arrays, targets) -> list[tuple[int, Output]]:
        tokens, log_probs, lengths, *scores = arrays
        return [
            (
                position,
                Output(
                    [row[:n].tolist() for row, n in zip(tokens[i], lengths[i], strict=True)],
                    log_probs[i].tolist(),
                    *(x[i, : len(targets[position])].tolist() for x in scores),
                ),
            )
            for i, position in enumerate(part)
        ]

    def _program(self, params, key, inputs, targets, numbers):
        """Inputs [B, S], targets [B, T|0], numbers [B] -> tokens [B, N, T], log Q and lengths
        [B, N], where targets are scored their log Q [B, T], and top-k ids and log P [B, T, K].
        """
        encoded = self._loaded.model.encode(params, inputs)
        written = self._search if self.decoding.beams else self._sample
        scores = self._scores(params, encoded, targets) if self._score else ()
        return *written(params, encoded, numbers, key), *scores

    def _sample(self, params, encoded, numbers, key):
        """N samples an input from one encoding; row = input·N + sample."""
        decoding = self.decoding
        batch, samples = numbers.shape[0], decoding.samples
        rows = (numbers[:, None] * samples + jnp.arange(samples)).reshape(-1)
        written = sample(
            self._loaded.model, params, encoded, key,
            max_length=decoding.max_length, valid=self._valid, temperature=decoding.temperature,
            top_k=decoding.top_k, top_p=decoding.top_p, samples=samples, rows=rows,
        )  # fmt: skip
        log_probs = jnp.sum(written.log_probs, axis=-1)
        results = (written.tokens, log_probs, written.lengths)
        return jax.tree.map(lambda x: x.reshape(batch, samples, *x.shape[1:]), results)

    def _search(self, params, encoded, numbers, key):
        """The best N of a beam search."""
        del numbers, key  # nothing is drawn
        from gkd.decode.beam import beam_search

        decoding = self.decoding
        found = beam_search(
            self._loaded.model, params, encoded, max_length=decoding.max_length, valid=self._valid,
            beams=decoding.beams, length_penalty=decoding.penalty,
        )  # fmt: skip
        results = (found.tokens, found.log_probs, found.lengths)
        return jax.tree.map(lambda x: x[:, : decoding.samples], results)

    def _scores(self, params, encoded, targets):
        """Of every target token [B, T]: log Q under the raw logits; if asked for the K best ids
        and their log-probabilities [B, T, K]. All block by block along T.
        """
        shards = self._shards
        logits = score_tokens(self._loaded.model, params, encoded, targets)
        log_probs = token_log_probs(logits, targets, shards)
        if not self._top_k:
            return (log_probs,)
        rows = PartitionSpec("data")

        def top_k(x, k):  # of each device's own rows; XLA's would gather all of them on each
            best = functools.partial(jax.lax.top_k, k=k)
            mesh = self._mesh
            return jax.shard_map(best, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(x)

        best = most_probable_ids(logits, self._valid, self._top_k, top_k=top_k, data_shards=shards)
        return log_probs, *best


def token_log_probs(
    logits: ProjectedLogits, targets: Int[Array, "rows length"], data_shards: int
) -> Float[Array, "rows length"]:
    """log Q of every target token under the raw logits, block by block along T.

    Args:
      logits: N rows of T tokens.
      targets: int32 [N, T], 0 after the end; what stands there means nothing.
      data_shards: number of devices that share the rows.

    Returns:
      float32 [N, T].
    """
    _, log_probs, _ = fused_token_loss(
        lambda logits, _, ids: token_log_prob(logits, ids), logits, None, targets,
        jnp.ones(targets.shape, jnp.float32), data_shards=data_shards,
    )  # fmt: skip
    return log_probs


def encode_inputs(vocabulary: Any, texts: Sequence[str], length: int) -> tuple[list[Any], int]:
    """Token ids of inputs through EOS, and how many were cut; a cut one ends with EOS too."""
    rows = vocabularies.encode_texts(vocabulary, texts)  # without EOS
    cut = sum(len(row) >= length for row in rows)
    return [[*row[: length - 1], vocabulary.eos_id] for row in rows], cut


def encode_targets(vocabulary: Any, texts: Sequence[str], length: int) -> tuple[list[Any], int]:
    """Token ids of targets through EOS, and how many were cut; a cut one has no EOS."""
    rows = [[*ids, vocabulary.eos_id] for ids in vocabularies.encode_texts(vocabulary, texts)]
    return [row[:length] for row in rows], sum(len(row) > length for row in rows)


def padded(rows: Sequence[Sequence[int]], length: int, padding_id: int = 0) -> np.ndarray:
    """Token ids as int32 [rows, length], `padding_id` after the end of each."""
    array = np.full((len(rows), length), padding_id, np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def ended(tokens: Sequence[int], eos_id: int) -> bool:
    """Checks if an output ends with EOS, so was not truncated."""
    return bool(tokens) and tokens[-1] == eos_id


def to_host(tree: Any) -> Any:
    """Whole arrays on this host, also those whose shards other hosts hold."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
