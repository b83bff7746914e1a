"""Every divergence between two models, on the student's own samples and on the references."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses
from gkd.distill.fused import fused_token_loss
from gkd.distill.rollouts import rollout_from_samples, rollout_from_targets
from gkd.distill.types import Batch
from gkd.models.scoring import score_tokens
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel

PREFIXES = ("on_policy", "reference")
CURVES = ("forward_kl", "reverse_kl")
_SEQUENCES = ("free_running", "teacher_forced")  # written by PREFIXES


@dataclasses.dataclass(frozen=True)
class Divergences:
    """Divergences of a student from its teacher.

    Attributes:
      metrics: on_policy_NAME and reference_NAME for each of `reported_divergences`: the mean
        over a sequence's tokens, then over sequences (equation 2 of arXiv 2306.13649), in nats
        (total_variation: 0 … 1).
      by_position: KL by position, which shows exposure bias: of `free_running` (the student's own
        samples) and `teacher_forced` (the references) the `rows` that have a token at position
        0, 1, …, and each of CURVES at that position, the mean over those rows. As long as the
        longest row.
      by_token: for every example the same two sequences by `free_running` and `teacher_forced`:
        token ids as `tokens`, and each of CURVES at every token; empty where not asked for.
    """

    metrics: dict[str, float]
    by_position: dict[str, dict[str, list[Any]]]
    by_token: tuple[dict[str, dict[str, list[Any]]], ...] = ()


class DivergenceMeter:
    """One compiled program that measures a student against its teacher on prompts."""

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel,
        mesh: Mesh,
        valid: Any,
        keep_tokens: bool = False,
    ) -> None:
        """Prepares; nothing is compiled yet.

        Args:
          student, teacher: the two models; parameters are passed to `measure`.
          mesh: mesh on which they run, the one to which both are bound.
          valid: bool [V], ids that may be sampled and have probability.
          keep_tokens: also return every sequence with its KL at each token.
        """
        self._mesh = mesh
        self._shapes = student.shapes, teacher.shapes
        rows, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
        self._run = jax.jit(
            _make_sums(student.model, teacher.model, valid, mesh.shape["data"], keep_tokens),
            in_shardings=(student.shardings, teacher.shardings, rows, whole, whole),
            out_shardings=whole,
        )

    def measure(
        self, params: Any, teacher_params: Any, batches: Sequence[Any], key: Any
    ) -> Divergences:
        """Measures; the student writes at temperature 1, so exactly from its distribution.

        Args:
          params, teacher_params: parameters of the two models, on the mesh.
          batches: `Batch`es of this host's rows, all of one size.
          key: PRNG key of the samples; a row's noise depends on it and the row's number only.
        """
        totals: dict[str, Any] = {}
        by_token: list[dict[str, dict[str, list[Any]]]] = []
        first = 0
        for batch in batches:
            placed = meshes.place_batch(batch, self._mesh)
            sums = self._run(params, teacher_params, placed, np.int32(first), key)
            first += placed.example_weights.shape[0]
            found = jax.device_get(sums)
            by_token += _by_token(found.pop("tokens", {}))
            for name, value in found.items():
                totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        return dataclasses.replace(_divided(totals), by_token=tuple(by_token))

    def lower(self, batch: Batch) -> Any:
        """Lowers the program for a batch's shapes, for inspection."""
        first = jax.ShapeDtypeStruct((), "int32")
        key = jax.eval_shape(jax.random.PRNGKey, 0)
        return self._run.lower(*self._shapes, batch, first, key)


def _make_sums(student, teacher, valid, data_shards, keep_tokens) -> Callable:
    """(params, teacher params, batch, first row's number, key) -> sums over the batch's rows.

    Each sum is an array whose first axis is PREFIXES: the divergences and `weight` [2], the curves
    and `rows` [2, T] under names with `at/`. With keep_tokens also `tokens`: the sequences' ids,
    weights and curves, each [B, 2, T].
    """

    def sums(params, teacher_params, batch, first, key):
        encoded = student.encode(params, batch.encoder_input_tokens)
        rollout = _rollout(student, params, encoded, batch, first, key, valid)
        tokens = rollout.target_tokens
        coefficients, _ = losses.token_coefficients(rollout)
        teacher_encoded = teacher.encode(teacher_params, batch.teacher_prompts)
        _, _, values = fused_token_loss(
            lambda logits, *_: jnp.zeros(logits.shape[:2], jnp.float32),
            score_tokens(student, params, encoded, tokens),
            score_tokens(teacher, teacher_params, teacher_encoded, tokens),
            tokens,
            coefficients,
            token_metrics=lambda student_logits, teacher_logits, _: {
                name: divergence(student_logits, teacher_logits, valid=valid)
                for name, divergence in divergences.reported_divergences().items()
            },
            data_shards=data_shards,
        )
        counted = (rollout.weights > 0).astype(jnp.float32)
        kept = {"ids": tokens, "weights": rollout.weights, **{n: values[n] for n in CURVES}}
        return {
            **({"tokens": jax.tree.map(_by_writer, kept)} if keep_tokens else {}),
            "weight": _by_writer(coefficients).sum(axis=(0, 2)),
            "at/rows": _by_writer(counted).sum(axis=0),
            **{
                name: _by_writer(coefficients * value).sum(axis=(0, 2))
                for name, value in values.items()
            },
            **{f"at/{name}": _by_writer(counted * values[name]).sum(axis=0) for name in CURVES},
        }

    return sums


def _rollout(student, params, encoded, batch, first, key, valid):
    """The student's samples and the references as one rollout, row = prompt·2 + writer."""
    rows, length = batch.decoder_target_tokens.shape
    samples = sample(
        student, params, encoded, key,
        max_length=length, valid=valid, rows=first + jnp.arange(rows),
    )  # fmt: skip
    own = rollout_from_samples(
        samples.tokens, samples.log_probs, samples.lengths, batch.example_weights
    )
    # Side by side, a prompt's two rows stay on the device that has the prompt.
    return jax.tree.map(
        lambda *pair: jnp.stack(pair, axis=1).reshape(2 * rows, *pair[0].shape[1:]),
        own,
        rollout_from_targets(batch, padding_id=student.special_ids.padding),
    )


def _by_writer(values):
    """[2·B, T] -> [B, 2, T]."""
    return values.reshape(-1, 2, values.shape[1])


def _by_token(kept) -> list[dict[str, dict[str, list[Any]]]]:
    """The sequences of a batch's examples without their padding; none where none were kept."""
    if not kept:
        return []
    examples = []
    for i in np.flatnonzero(kept["weights"].any(axis=(1, 2))):
        example = {}
        for writer, name in enumerate(_SEQUENCES):
            counted = kept["weights"][i, writer] > 0
            example[name] = {"tokens": kept["ids"][i, writer][counted].tolist()}
            for curve in CURVES:
                values = kept[curve][i, writer][counted]
                example[name][curve] = [round(float(value), 4) for value in values]
        examples.append(example)
    return examples


def _divided(totals) -> Divergences:
    """The means that the sums over all batches stand for."""
    metrics, by_position = {}, {}
    for i, (prefix, curve) in enumerate(zip(PREFIXES, _SEQUENCES, strict=True)):
        weight = max(totals["weight"][i], 1e-9)
        for name in divergences.reported_divergences():
            metrics[f"{prefix}_{name}"] = float(totals[name][i] / weight)
        rows = totals["at/rows"][i]
        rows = rows[rows > 0]  # a row that has a position has all before it
        by_position[curve] = {"rows": rows.astype(int).tolist()}
        for name in CURVES:
            by_position[curve][name] = (totals[f"at/{name}"][i][: len(rows)] / rows).tolist()
    return Divergences(metrics, by_position)
