"""Generates completions for many inputs, in full batches of a few compiled lengths."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from gkd.decode.sampling import sample
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import token_log_prob
from gkd.errors import InvalidValue
from gkd.infer.batched_program import BatchedProgram, padded
from gkd.infer.decode_options import Decoding
from gkd.infer.most_probable_ids import most_probable_ids
from gkd.models.interface import ProjectedLogits
from gkd.models.scoring import score_tokens
from gkd.runs.model_loading import LoadedModel
from gkd.vocabularies import token_rows


@dataclasses.dataclass(frozen=True)
class Output:
    """The completions of one input, and the scores of its target.

    Attributes:
      tokens: ids of each completion through EOS; empty if a beam search found fewer completions.
      log_probs: log-probability of each completion over `valid_ids`; −inf for an empty one.
      target_log_probs: log-probability of every token of the target under the raw logits, if
        requested.
      target_top_ids, target_top_log_probs: the K most probable of `valid_ids` at every token of
        the target, the best first, and their log-probabilities over `valid_ids`, if requested.
    """

    tokens: list[list[int]]
    log_probs: list[float]
    target_log_probs: list[float] | None = None
    target_top_ids: list[list[int]] | None = None
    target_top_log_probs: list[list[float]] | None = None


class Generator:
    """Generates completions with a model, compiled once for every padded length of its inputs."""

    def __init__(
        self,
        loaded: LoadedModel,
        mesh: Mesh,
        valid: Any,
        decoding: Decoding,
        buckets: Sequence[int],
        batch_size: int,
        score: bool = False,
        top_k_log_probs: int = 0,
    ) -> None:
        """Prepares the program; nothing is compiled yet.

        Args:
          loaded: the model, its parameters on the mesh.
          mesh: device mesh to which the model is bound.
          valid: bool [V], the `valid_ids` that may be generated.
          decoding: options of decoding.
          buckets: lengths that inputs are padded to, ascending.
          batch_size: inputs per batch, over all devices.
          score: return the log-probabilities of the targets' tokens too.
          top_k_log_probs: with `score`, number of most probable ids to return at each of the
            targets' tokens; 0 for none.

        Raises:
          ValueError: the batch does not divide over the devices, or there are fewer `valid_ids`.
        """
        count = int(np.sum(np.asarray(valid)))
        if top_k_log_probs > count:
            raise InvalidValue(
                f"top_k_log_probs is {top_k_log_probs}, but only {count} ids are valid: use "
                f"{count} or fewer"
            )
        self._top_k = top_k_log_probs
        self._loaded, self._mesh, self._shards = loaded, mesh, mesh.shape["data"]
        self._valid, self.decoding, self._score = jnp.asarray(valid), decoding, score
        self._batched = BatchedProgram(self._program, loaded, mesh, buckets, batch_size)
        self._compiled = self._batched.compiled
        self._batch_size = batch_size

    @property
    def programs(self) -> int:
        """Number of compiled programs."""
        return len(self._batched.lengths_run)

    def outputs(
        self,
        inputs: Sequence[Sequence[int]],
        first_number: int = 0,
        targets: Sequence[Sequence[int]] | None = None,
        params: Any = None,
    ) -> Iterator[list[tuple[int, Output]]]:
        """Generates completions batch by batch, grouping inputs of similar length.

        The noise of a sample is a function of the seed and its global number, (number of the
        input)·N + sample, so that the division of inputs into calls and batches changes nothing.

        Args:
          inputs: token ids of prompts, each at most as long as the last bucket.
          first_number: global number of the first input.
          targets: token ids of the targets, at most max_length each, if they are scored.
          params: parameters to use, on the mesh; by default those of the loaded model.

        Yields:
          (position in `inputs`, output) for the inputs of one batch.
        """
        length = self.decoding.max_length if self._score else 0
        padding = self._loaded.model.special_ids.padding

        def rows_of(positions):
            scored = [targets[i] if self._score else [] for i in positions]
            numbers = np.asarray([first_number + i for i in positions], np.int64)
            return padded(scored, length, padding), numbers.astype(np.int32)

        params = self._loaded.params if params is None else params
        key = jax.random.PRNGKey(self.decoding.seed)
        for positions, arrays in self._batched.run(params, key, inputs, rows_of):
            yield self._finish(positions, arrays, targets)

    def lower(self, length: int) -> Any:
        """Lowers the program for one input length from shapes alone, for inspection.

        Args:
          length: padded length of the inputs in tokens.
        """

        def tokens(*shape):
            return jax.ShapeDtypeStruct((self._batch_size, *shape), "int32")

        scored = self.decoding.max_length if self._score else 0
        key = jax.eval_shape(jax.random.PRNGKey, 0)
        batch = (tokens(length), tokens(scored), tokens())
        return self._batched.lower(self._loaded.shapes, key, batch)

    def _finish(self, positions, arrays, targets) -> list[tuple[int, Output]]:
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
            for i, position in enumerate(positions)
        ]

    def _program(self, params, key, inputs, targets, numbers):
        """Generates and scores one batch.

        Inputs [B, S], targets [B, T|0], numbers [B] -> tokens [B, N, T], log Q and lengths [B, N],
        and for scored targets log Q [B, T], top-k ids and log P [B, T, K].
        """
        encoded = self._loaded.model.encode(params, inputs)
        decode = self._search if self.decoding.beams else self._sample
        scores = self._scores(params, encoded, targets) if self._score else ()
        return *decode(params, encoded, numbers, key), *scores

    def _sample(self, params, encoded, numbers, key):
        """Draws N samples per input from one encoding; row = input·N + sample."""
        decoding = self.decoding
        batch, samples = numbers.shape[0], decoding.samples
        rows = (numbers[:, None] * samples + jnp.arange(samples)).reshape(-1)
        sampled = sample(
            self._loaded.model, params, encoded, key,
            max_length=decoding.max_length, valid=self._valid, temperature=decoding.temperature,
            top_k=decoding.top_k, top_p=decoding.top_p, samples=samples, rows=rows,
        )  # fmt: skip
        log_probs = jnp.sum(sampled.log_probs, axis=-1)
        results = (sampled.tokens, log_probs, sampled.lengths)
        return jax.tree.map(lambda x: x.reshape(batch, samples, *x.shape[1:]), results)

    def _search(self, params, encoded, numbers, key):
        """Returns the best N completions of a beam search."""
        del numbers, key  # beam search is deterministic
        from gkd.decode.beam import beam_search

        decoding = self.decoding
        beams = beam_search(
            self._loaded.model, params, encoded, max_length=decoding.max_length, valid=self._valid,
            beams=decoding.beams, length_penalty=decoding.penalty,
        )  # fmt: skip
        results = (beams.tokens, beams.log_probs, beams.lengths)
        return jax.tree.map(lambda x: x[:, : decoding.samples], results)

    def _scores(self, params, encoded, targets):
        """Scores the targets block by block along T.

        Returns log Q of every target token [B, T] under the raw logits and, if requested, the K
        best ids and their log-probabilities [B, T, K].
        """
        shards = self._shards
        logits = score_tokens(self._loaded.model, params, encoded, targets)
        log_probs = token_log_probs(logits, targets, shards)
        if not self._top_k:
            return (log_probs,)
        rows = PartitionSpec("data")

        def top_k(x, k):  # on each device's own rows; XLA's version gathers all rows on each
            best = functools.partial(jax.lax.top_k, k=k)
            mesh = self._mesh
            return jax.shard_map(best, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(x)

        best = most_probable_ids(logits, self._valid, self._top_k, top_k=top_k, data_shards=shards)
        return log_probs, *best


def token_log_probs(
    logits: ProjectedLogits, targets: Int[Array, "rows length"], data_shards: int
) -> Float[Array, "rows length"]:
    """Computes log Q of every target token under the raw logits, block by block along T.

    Args:
      logits: projected logits of N rows of T tokens.
      targets: int32 [N, T], any id after the end.
      data_shards: number of devices that share the rows.

    Returns:
      float32 [N, T]; values after the end of a target are meaningless.
    """
    _, log_probs, _ = fused_token_loss(
        lambda logits, _, ids: token_log_prob(logits, ids), logits, None, targets,
        jnp.ones(targets.shape, jnp.float32), data_shards=data_shards,
    )  # fmt: skip
    return log_probs


def encode_inputs(vocabulary: Any, texts: Sequence[str], length: int) -> tuple[list[Any], int]:
    """Encodes inputs as prompts of a model, and counts truncated ones, see `token_rows`.

    Args:
      vocabulary: a seqio vocabulary.
      texts: the inputs.
      length: greatest length in tokens, including T5's EOS.

    Returns:
      Token ids of every input, and the number of truncated inputs.

    Raises:
      InvalidValue: an input has no tokens, which a decoder-only model cannot continue.
    """
    rows = token_rows.encode_prompts(vocabulary, texts)
    if not all(rows):
        raise InvalidValue(
            "an input is empty: a decoder-only model without a BOS needs one token to continue"
        )
    short = [token_rows.shortened_prompt(vocabulary, row, length) for row in rows]
    return short, sum(len(row) > length for row in rows)


def encode_targets(
    vocabulary: Any, texts: Sequence[str], length: int, after_text: bool = True
) -> tuple[list[Any], int]:
    """Encodes targets through EOS, and counts truncated ones, which have no EOS.

    Args:
      vocabulary: a seqio vocabulary.
      texts: the targets.
      length: greatest length in tokens.
      after_text: false after chats, see `token_rows.continued`.

    Returns:
      Token ids of every target, and the number of truncated targets.
    """
    texts = [token_rows.continued(vocabulary, text, after_text) for text in texts]
    rows = token_rows.encode_targets(vocabulary, texts)
    return [row[:length] for row in rows], sum(len(row) > length for row in rows)
