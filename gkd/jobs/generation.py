"""Outputs for many inputs: a few compiled lengths, full batches, results in the inputs' order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from gkd.data import vocabularies
from gkd.decode.sampling import EOS_ID, sample
from gkd.distill.divergences import token_log_prob
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import ProjectedLogits
from gkd.distill.most_probable import most_probable_ids
from gkd.distill.rollouts import shift_right
from gkd.jobs.models import LoadedModel
from gkd.parallel import mesh as meshes

SHORTEST_BUCKET = 32
LENGTH_PENALTY = 0.6


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How outputs are written: one greedy output an input, by default.

    Attributes:
      max_length: tokens of an output at most, EOS included.
      temperature: 0 is greedy; above 0 outputs are sampled.
      top_k, top_p: of sampling; 0 and 1 keep all ids.
      samples: outputs an input.
      beams: of a beam search, whose best `samples` outputs are kept; 0 is no beam search.
      length_penalty: of a beam search; None is T5's.
      seed: of sampling.

    Raises:
      ValueError: a setting that means nothing, or that the others would ignore.
    """

    max_length: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    beams: int = 0
    length_penalty: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name, least in (("max_length", 1), ("samples", 1), ("beams", 0), ("top_k", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: use {least} or more")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}: use 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: use a probability in (0, 1]")
        if self.beams:
            self._check_beams()
        elif self.length_penalty is not None:
            raise ValueError("length_penalty is of a beam search: set beams too")
        elif not self.temperature and self.samples > 1:
            raise ValueError(
                f"{self.samples} greedy samples are all the same: set temperature above 0, or beams"
            )
        elif not self.temperature and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p are of sampling: set temperature above 0 too")

    def _check_beams(self):
        if self.temperature or self.top_k or self.top_p < 1:
            raise ValueError(
                "beams search, temperature, top_k and top_p sample: set one or the other"
            )
        if self.samples > self.beams:
            raise ValueError(
                f"samples is {self.samples} and beams {self.beams}: a beam search gives at most "
                f"{self.beams} outputs an input"
            )
        if not 0 <= self.penalty < float("inf"):
            raise ValueError(f"length_penalty is {self.length_penalty}: use 0 (none) or more")

    @property
    def penalty(self) -> float | int | None:
        """The length penalty that is used; None where there is no beam search."""
        unset = self.beams and self.length_penalty is None
        return LENGTH_PENALTY if unset else self.length_penalty


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
        shards = mesh.shape["data"]
        if batch_size < 1 or batch_size % shards:
            raise ValueError(
                f"batch_size {batch_size} does not divide over {shards} devices: use a multiple"
            )
        usable = int(np.sum(np.asarray(valid)))
        if top_k_log_probs > usable:
            raise ValueError(
                f"top_k_log_probs is {top_k_log_probs}, but only {usable} ids can be written: use "
                f"{usable} or fewer"
            )
        self._top_k = top_k_log_probs
        self._loaded, self._mesh, self._rules = loaded, mesh, rules
        self._valid, self.decoding, self._score = jnp.asarray(valid), decoding, score
        self._buckets, self._batch_size = tuple(buckets), batch_size
        rows, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
        self._compiled = jax.jit(
            self._program,
            in_shardings=(loaded.shardings, rows, rows, rows, whole),
            out_shardings=rows,
        )
        self._lengths_run: set[int] = set()

    @property
    def programs(self) -> int:
        """How many programs have been compiled."""
        return len(self._lengths_run)

    def outputs(
        self,
        inputs: Sequence[Sequence[int]],
        first_number: int = 0,
        targets: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[list[tuple[int, Output]]]:
        """Writes outputs for some inputs, batch by batch, similar lengths together.

        The noise of a sample comes from the seed and its global number, (number of the input)·N +
        sample: how inputs are cut into calls and batches changes nothing.

        Args:
          inputs: token ids through EOS, each at most as long as the last bucket.
          first_number: the global number of the first input.
          targets: token ids of the targets, at most max_length each, where they are scored.

        Yields:
          (position in `inputs`, output) of the inputs of one batch.
        """
        pending = None
        sizes = [len(tokens) for tokens in inputs]
        for length, part in plan(sizes, self._buckets, self._batch_size):
            running = self._start(length, part, inputs, first_number, targets)
            if pending is not None:  # the device works on this batch while that one is read
                yield self._finish(*pending, targets)
            pending = (part, running)
        if pending is not None:
            yield self._finish(*pending, targets)

    def _start(self, length, part, inputs, first_number, targets):
        # A batch is always full, so that the program is the same. What fills it is a real input: an
        # empty one might write to the end, and the loop would wait for it.
        filled = part + [part[-1]] * (self._batch_size - len(part))
        target_length = self.decoding.max_length if self._score else 0
        numbers = np.asarray([first_number + i for i in filled], np.int64).astype(np.int32)
        batch = (
            padded([inputs[i] for i in filled], length),
            padded([targets[i] if self._score else [] for i in filled], target_length),
            numbers,
        )
        self._lengths_run.add(length)
        with meshes.on_mesh(self._mesh, self._rules):
            placed = meshes.place_batch(batch, self._mesh)
            key = jax.random.PRNGKey(self.decoding.seed)
            return self._compiled(self._loaded.params, *placed, key)

    def _finish(self, part, running, targets) -> list[tuple[int, Output]]:
        tokens, log_probs, lengths, *scores = jax.device_get(running)
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

    def _program(self, params, inputs, targets, numbers, key):
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
        repeated = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), encoded)
        rows = (numbers[:, None] * samples + jnp.arange(samples)).reshape(-1)
        written = sample(
            self._loaded.model, params, repeated, key,
            max_length=decoding.max_length, valid=self._valid, temperature=decoding.temperature,
            top_k=decoding.top_k, top_p=decoding.top_p, rows=rows,
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
        model, shards = self._loaded.model, self._mesh.shape["data"]
        hidden = model.decode_hidden(params, encoded, shift_right(targets))
        logits = ProjectedLogits(hidden.last, model.head(params))
        _, log_probs, _ = fused_token_loss(
            lambda logits, _, ids: token_log_prob(logits, ids), logits, None, targets,
            jnp.ones(targets.shape, jnp.float32), data_shards=shards,
        )  # fmt: skip
        if not self._top_k:
            return (log_probs,)
        rows = PartitionSpec("data")

        def top_k(x, k):  # of each device's own rows; XLA's would gather all of them on each
            best = functools.partial(jax.lax.top_k, k=k)
            return jax.shard_map(best, in_specs=rows, out_specs=rows, check_vma=False)(x)

        best = most_probable_ids(logits, self._valid, self._top_k, top_k=top_k, data_shards=shards)
        return log_probs, *best


def encode_inputs(vocabulary: Any, texts: Sequence[str], length: int) -> tuple[list[Any], int]:
    """Token ids of inputs through EOS, and how many were cut; a cut one ends with EOS too."""
    rows = vocabularies.encode_texts(vocabulary, texts)  # without EOS
    cut = sum(len(row) >= length for row in rows)
    return [[*row[: length - 1], vocabulary.eos_id] for row in rows], cut


def encode_targets(vocabulary: Any, texts: Sequence[str], length: int) -> tuple[list[Any], int]:
    """Token ids of targets through EOS, and how many were cut; a cut one has no EOS."""
    rows = [[*ids, vocabulary.eos_id] for ids in vocabularies.encode_texts(vocabulary, texts)]
    return [row[:length] for row in rows], sum(len(row) > length for row in rows)


def padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Token ids as int32 [rows, length], 0 after the end of each."""
    array = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def ended(tokens: Sequence[int]) -> bool:
    """Whether an output stopped by itself."""
    return bool(tokens) and tokens[-1] == EOS_ID
