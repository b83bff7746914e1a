"""Options of multiple-choice prompts, scored by their log-likelihood under a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gkd.infer.batched_program import BatchedProgram, padded
from gkd.infer.generator import token_log_probs
from gkd.models.scoring import score_tokens
from gkd.runs.model_loading import LoadedModel


class OptionScorer:
    """A model that scores the options of prompts; each prompt is encoded once for all of its."""

    def __init__(
        self,
        loaded: LoadedModel,
        mesh: Mesh,
        options: Sequence[Sequence[Sequence[int]]],
        buckets: Sequence[int],
        batch_size: int,
    ) -> None:
        """Prepares; nothing is compiled yet.

        Args:
          loaded: the model.
          mesh: mesh on which it runs, the one to which the model is bound.
          options: for every prompt the token ids of each of its options, through EOS.
          buckets: the lengths that prompts are padded to, ascending.
          batch_size: prompts a batch, over all devices.
        """
        self._model, self._shards, self._options = loaded.model, mesh.shape["data"], options
        self._count = max(len(row) for row in options)
        self._length = max(len(option) for row in options for option in row)
        self._batched = BatchedProgram(self._program, loaded, mesh, buckets, batch_size)

    def scores(self, params: Any, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """log Q(option | prompt): the sum over its tokens with EOS, raw logits, natural log.

        Args:
          params: the model's parameters on the mesh.
          inputs: the prompts' token ids through EOS, as many as there are rows of options.

        Returns:
          A score for every option of every prompt. It is not divided by the option's length.
        """
        scores: list[list[float]] = [[]] * len(inputs)
        for part, arrays in self._batched.run(params, (), inputs, self._rows):
            for position, row in zip(part, arrays, strict=False):
                scores[position] = row[: len(self._options[position])].tolist()
        return scores

    def _rows(self, positions):
        """Options of some prompts, int32 [B, K, T]; a prompt of fewer has empty ones at the end."""
        blank: list[list[int]] = [[]] * self._count
        padding = self._model.special_ids.padding
        rows = [(list(self._options[i]) + blank)[: self._count] for i in positions]
        return (np.stack([padded(row, self._length, padding) for row in rows]),)

    def _program(self, params, _, inputs, options):
        """Prompts [B, S], options [B, K, T] -> log-likelihoods [B, K]."""
        count, length = options.shape[1:]
        padding = self._model.special_ids.padding
        encoded = self._model.encode(params, inputs)
        tokens = options.reshape(-1, length)  # row = prompt·K + option
        logits = score_tokens(self._model, params, encoded, tokens)
        log_probs = token_log_probs(logits, tokens, self._shards)
        return jnp.sum(jnp.where(tokens != padding, log_probs, 0.0), axis=-1).reshape(-1, count)
