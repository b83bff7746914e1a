"""Distillation of a prompt's longest wrong sample by a teacher that reads a correct one (SSOPD)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gkd.auxiliary_losses.groups import Groups, sample_of_each, verified_groups
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import DenseLogits, Logits, Temperature
from gkd.distill.losses import (
    Divergence,
    DivergenceLoss,
    Loss,
    divergence_of_tokens,
    token_coefficients,
)
from gkd.distill.types import Batch, Rollout
from gkd.errors import InvalidValue
from gkd.models.interface import Seq2SeqModel
from gkd.models.scoring import score_tokens
from gkd.models.token_rows import fixed_piece, joined_row, text_length

_TEMPLATE = re.compile(r"([^{}]*)\{inputs\}([^{}]*)\{witness\}([^{}]*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WitnessLoss:
    """Settings of the distillation of victims, a prompt's longest wrong samples.

    Attributes:
      weight: λ0, factor of the loss, 0 or more.
      tokens: K, the first tokens of a victim that are compared.
      threshold: a sample is correct with a reward above it.
      template: the teacher's prompt: `{inputs}` is the student's prompt, `{witness}` the prompt's
        shortest correct sample, in this order.
      input_length: tokens of the teacher's prompt; a witness that does not fit is cut at its end
        and counted. None is INPUT_LENGTH + TARGET_LENGTH.

    Raises:
      InvalidValue: a setting out of its range.

    Source: arXiv 2605.17497 (SSOPD), which gives the weight; the others are ours.
    """

    weight: float | int = 0.5
    tokens: int = 64
    threshold: float | int = 0.5
    template: str = "{inputs} {witness}"
    input_length: int | None = None

    def __post_init__(self):
        if self.weight < 0:
            raise InvalidValue(f"WitnessLoss.weight is {self.weight}: use 0 or more")
        if self.tokens < 1:
            raise InvalidValue(f"WitnessLoss.tokens is {self.tokens}: use 1 or more")
        if not _TEMPLATE.fullmatch(self.template):
            raise InvalidValue(
                f"WitnessLoss.template is {self.template!r}: write {{inputs}} and then "
                "{witness}, each once, and no other braces"
            )

    @property
    def texts(self) -> tuple[str, str, str]:
        """The template's texts before the prompt, between prompt and witness, and after both."""
        return _TEMPLATE.fullmatch(self.template).groups()

    def prompt_length(self, input_length: int, target_length: int) -> int:
        """Returns the tokens of a teacher's prompt.

        Args:
          input_length: tokens of the student's prompts.
          target_length: tokens of the batch's targets.
        """
        return self.input_length or input_length + target_length


@flax.struct.dataclass
class VictimLogits:
    """The teacher's logits of the victims.

    Attributes:
      logits: B rows of K tokens.
      cut: bool [B], true where the witness did not fit.
    """

    logits: Any
    cut: Any


@dataclasses.dataclass(frozen=True)
class WitnessTeacher:
    """A `teacher_logits_fn` that scores victims, their witnesses in its prompts.

    A prompt is `before · student's prompt · between · witness · after · EOS`. Where the template
    has white space at its seams, these are sentencepiece's tokens of the whole text.

    Attributes:
      model: the teacher.
      settings: the loss's.
      template_ids: token ids of the template's three texts, without EOS.
      samples: G.
    """

    model: Seq2SeqModel
    settings: WitnessLoss
    template_ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    samples: int

    def __call__(self, params: Any, batch: Batch, rollout: Rollout) -> VictimLogits:
        """Computes the logits of every prompt's victim, without gradient."""
        groups = verified_groups(rollout, self.samples, self.settings.threshold)
        witnesses = sample_of_each(rollout.target_tokens, groups.witnesses)
        prompts, cut = self.prompts(
            batch.encoder_input_tokens, witnesses, batch.decoder_target_tokens.shape[1]
        )
        encoded = self.model.encode(params, prompts)
        victims = sample_of_each(rollout.target_tokens[:, : self.settings.tokens], groups.victims)
        logits = score_tokens(self.model, params, encoded, victims)
        return jax.lax.stop_gradient(VictimLogits(logits, cut))

    def prompts(
        self,
        encoder_input_tokens: Int[Array, "prompts input_length"],
        witnesses: Int[Array, "prompts length"],
        target_length: int,
    ) -> tuple[Int[Array, "prompts teacher_length"], Bool[Array, " prompts"]]:
        """Joins the student's prompts and their witnesses.

        Args:
          encoder_input_tokens: [B, S], each prompt through EOS, then padding.
          witnesses: [B, T], samples through EOS, then padding.
          target_length: tokens of the batch's targets.

        Returns:
          int32 [B, S'], through EOS, then padding; and bool [B], true where a witness was cut.

        Raises:
          InvalidValue: the longest prompt would leave no token of its witness.
        """
        source = encoder_input_tokens.shape[1]
        length = self.settings.prompt_length(source, target_length)
        before, between, after = map(fixed_piece, self.template_ids)
        fixed = sum(map(len, self.template_ids)) + 1  # 1: EOS
        if length <= source + fixed:
            raise InvalidValue(
                f"the teacher's prompt has {length} tokens, but a prompt of INPUT_LENGTH {source} "
                f"and the template's {fixed} leave none for a witness: set WitnessLoss."
                f"input_length to more than {source + fixed}"
            )
        ids = self.model.special_ids

        def one(prompt, witness):
            asked, written = text_length(prompt, ids), text_length(witness, ids)
            kept = jnp.minimum(written, length - fixed - asked)
            pieces = [before, (prompt, 0, asked), between, (witness, 0, kept), after]
            return joined_row(pieces, length, ids), kept < written

        return jax.vmap(one)(encoder_input_tokens, witnesses)


def witness_loss(
    student: Logits,
    teacher: VictimLogits,
    rollout: Rollout,
    *,
    settings: WitnessLoss,
    divergence: Divergence,
    samples: int,
    temperature: Temperature = 1.0,
    valid: Bool[Array, " vocabulary"] | None = None,
    block_size: int | None = None,
    data_shards: int = 1,
) -> Loss:
    """λ0 · 4p(1 − p) · the divergence's mean over the victim's first K tokens; a mean over prompts.

    Prompts whose samples are all correct, or all wrong, give 0.

    Args:
      student: logits of the rollout's tokens, N = B·G rows of T.
      teacher: the teacher's of the victims; no gradient flows into them.
      rollout: tokens, weights and rewards.
      settings: weight, number of tokens and threshold.
      divergence: a function of gkd.distill.divergences or its record, with its parameters bound.
      samples: G.
      temperature, valid, block_size, data_shards: see `divergence_loss`.

    Returns:
      Sum and weight as of `token_coefficients` in the normalisation "sequence", and the metrics
      "auxiliary_loss", "witness_divergence" (the mean over mixed groups, without factors),
      "mixed_groups", "pass_rate" and "witness_cut" as (sum, weight) pairs.

    Source: arXiv 2605.17497 (SSOPD).
    """
    groups = verified_groups(rollout, samples, settings.threshold)
    row_coefficients, weight = token_coefficients(rollout, "sequence")
    prompt_weights = jnp.sum(row_coefficients.reshape(-1, samples * rollout.weights.shape[1]), 1)
    ids, weights = (
        sample_of_each(rows[:, : settings.tokens], groups.victims)
        for rows in (rollout.target_tokens, rollout.weights)
    )
    mask = weights != 0
    share = mask / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)  # [B, K]
    scale = settings.weight * prompt_weights * groups.frontier
    total, per_token, _ = fused_token_loss(
        divergence_of_tokens(divergence, temperature, valid),
        _of_victims(student, groups, settings.tokens), teacher.logits, ids,
        scale[:, None] * share, block_size=block_size, data_shards=data_shards,
    )  # fmt: skip
    mixed = prompt_weights * groups.mixed
    distance = jnp.sum(per_token * share, axis=1)
    present = jnp.where(groups.counted > 0, prompt_weights, 0.0)
    return total, weight, {
        "auxiliary_loss": (total, weight),
        "witness_divergence": (jnp.sum(mixed * distance), jnp.sum(mixed)),
        "mixed_groups": (jnp.sum(mixed), jnp.sum(present)),
        "pass_rate": (jnp.sum(groups.passed), jnp.sum(groups.counted)),
        "witness_cut": (jnp.sum(mixed * teacher.cut), jnp.sum(mixed)),
    }  # fmt: skip


def _of_victims(logits, groups: Groups, tokens: int):
    """The student's logits of the victims' first tokens, B rows of K."""
    name = "values" if isinstance(logits, DenseLogits) else "hidden"
    first = getattr(logits, name)[:, :tokens]
    return dataclasses.replace(logits, **{name: sample_of_each(first, groups.victims)})


def with_witness_loss(loss_fn: DivergenceLoss, **options: Any) -> Callable:
    """Adds the distillation of victims to a loss whose weight is that of sequences.

    Args:
      loss_fn: (student, None, rollout) -> (sum, weight, metrics): the policy gradient.
      **options: of `witness_loss`.

    Returns:
      A function like `loss_fn`, whose teacher logits are `VictimLogits`.
    """

    def loss(student, teacher, rollout):
        total, weight, metrics = loss_fn(student, None, rollout)
        added, _, more = witness_loss(student, teacher, rollout, **options)
        return total + added, weight, {**metrics, **more}

    return loss
