"""A reward that a model gives inside the step's program: textual entailment by a T5 NLI model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gkd.distill.logits import token_log_prob
from gkd.errors import InvalidValue
from gkd.models.interface import Seq2SeqModel, SpecialIds, project
from gkd.models.scoring import score_tokens
from gkd.models.token_rows import fixed_piece, joined_row, text_length


@dataclasses.dataclass(frozen=True)
class Entailment:
    """The probability that a document entails a sample: the reward of the GKD paper's Eq. 5.

    A row of the model's input is `premise ids · document ids · hypothesis ids · sample ids · EOS`.
    A document that leaves no room for the rest is cut at its end; a sample is never cut. Where the
    template has white space at its seams, these are sentencepiece's tokens of the whole text, for
    pieces do not cross white space; only a sample that its student cut up in another way than
    sentencepiece would keeps its own tokens.

    Attributes:
      premise_ids, hypothesis_ids: the pieces of the template, token ids without EOS.
      entailment_id: the first token of the model's answer where the sample is entailed.
      input_length: tokens of the model's input.
      prompt_prefix_ids: beginning of a prompt that is not part of the document (the ids of
        `summarize: `); it is left out of those rows that begin with it.
      hypothesis_first: put hypothesis and sample before premise and document.
      eos_id, padding_id: ids of the vocabulary.

    Source: Honovich et al., "TRUE: Re-evaluating Factual Consistency Evaluation" (2022), whose
    model answers `1` or `0` to `premise: … hypothesis: …`; used as a reward by Roit et al.,
    "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment
    Feedback" (2023), and by Agarwal et al. 2024 (arXiv 2306.13649), section 4.1.
    """

    premise_ids: tuple[int, ...]
    hypothesis_ids: tuple[int, ...]
    entailment_id: int
    input_length: int
    prompt_prefix_ids: tuple[int, ...] = ()
    hypothesis_first: bool = False
    eos_id: int = 1
    padding_id: int = 0

    def inputs(
        self,
        encoder_input_tokens: Int[Array, "prompts input_length"],
        target_tokens: Int[Array, "rows length"],
    ) -> Int[Array, "rows entailment_length"]:
        """The model's input for every sample.

        Args:
          encoder_input_tokens: [B, S], each prompt through EOS, then 0.
          target_tokens: [N, T], N = B·G samples through EOS, then 0; row = prompt·G + sample.

        Returns:
          int32 [N, input_length], through EOS, then 0.

        Raises:
          ValueError: the longest sample would leave no token of the document.
        """
        rows, length = target_tokens.shape
        around = len(self.premise_ids) + len(self.hypothesis_ids) + length + 1  # 1: EOS
        if self.input_length <= around:
            raise InvalidValue(
                f"entailment's input_length is {self.input_length}, but the template and a sample "
                f"of {length} tokens take {around} and leave none for the document: make it longer"
            )
        prompts = jnp.repeat(encoder_input_tokens, rows // encoder_input_tokens.shape[0], axis=0)
        return jax.vmap(self._row)(prompts, target_tokens)

    def _row(self, prompt, sample):
        """One row of `inputs`: prompt [S], sample [T] -> [input_length]."""
        ids = self._special_ids
        fixed = [fixed_piece(piece) for piece in (self.premise_ids, self.hypothesis_ids)]
        start, written = self._prefix_length(prompt), text_length(sample, ids)
        room = self.input_length - fixed[0][2] - fixed[1][2] - written - 1
        document = jnp.clip(text_length(prompt, ids) - start, 0, room)
        about_document = [fixed[0], (prompt, start, document)]
        about_sample = [fixed[1], (sample, 0, written)]
        pieces = [*about_document, *about_sample]
        if self.hypothesis_first:
            pieces = [*about_sample, *about_document]
        return joined_row(pieces, self.input_length, ids)

    def score(
        self,
        model: Seq2SeqModel,
        params: Any,
        encoder_input_tokens: Int[Array, "prompts input_length"],
        target_tokens: Int[Array, "rows length"],
    ) -> Float[Array, " rows"]:
        """The probability of the entailment token as the answer's first, over all ids.

        Args:
          model: the NLI model; it reads the same vocabulary.
          params: its parameters.
          encoder_input_tokens: [B, S], the prompts.
          target_tokens: [N, T], the samples, as in `inputs`.

        Returns:
          float32 [N] in [0, 1], without gradient.
        """
        inputs = self.inputs(encoder_input_tokens, target_tokens)
        encoded = model.encode(params, inputs)
        answer = jnp.full((inputs.shape[0], 1), self.entailment_id, jnp.int32)
        scored = score_tokens(model, params, encoded, answer)
        logits = project(scored.hidden, scored.head)  # [N, 1, V]
        return jax.lax.stop_gradient(jnp.exp(token_log_prob(logits, answer)[:, 0]))

    def _prefix_length(self, prompt):
        """Counts the tokens of a prompt [S] before its document."""
        size = len(self.prompt_prefix_ids)
        if size > prompt.shape[0]:
            return 0
        prefix = jnp.array(self.prompt_prefix_ids, jnp.int32)
        return jnp.where(jnp.all(prompt[:size] == prefix), size, 0)

    @property
    def _special_ids(self):
        return SpecialIds(end=self.eos_id, padding=self.padding_id)
