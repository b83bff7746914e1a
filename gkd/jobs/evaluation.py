"""Evaluation of a model on a task: outputs and their metrics, divergences, a sample table."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from gkd.data import pipeline, vocabularies
from gkd.data.tasks import TaskSpec
from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, train_step
from gkd.distill.fused import fused_token_loss
from gkd.distill.logits import ProjectedLogits
from gkd.distill.rollouts import shift_right
from gkd.distill.types import Batch
from gkd.jobs.generation import Decoding, Generator, Output, length_buckets
from gkd.jobs.models import LoadedModel
from gkd.parallel import mesh as meshes

_EVALUATION_KEY = 0x6576616C  # folded into the seed: no training step draws from it


@dataclasses.dataclass(frozen=True)
class Generated:
    """The outputs of a model on an evaluation set.

    Attributes:
      metrics: the task's metrics in percent, and facts about the outputs' lengths.
      texts: one output an example, in the set's order.
    """

    metrics: dict[str, float]
    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A split of a task, ready to measure models on.

    Attributes:
      task: the task.
      mesh, rules: where models run.
      examples: the split's batches and texts.
      valid: bool [V], ids that may be written.
      temperature: of the outputs; 0 is greedy.
    """

    task: TaskSpec
    mesh: Mesh
    rules: Mapping[str, str | None]
    examples: pipeline.EvaluationSet
    valid: Any
    temperature: float = 0.0

    def generator(self, loaded: LoadedModel) -> Callable[[Any, Any], Generated]:
        """A compiled (params, seed) -> Generated for one model."""
        model, temperature, valid = loaded.model, self.temperature, self.valid

        def write(params, batch, rng):
            encoded = model.encode(params, batch.encoder_input_tokens)
            length = batch.decoder_target_tokens.shape[1]
            return sample(
                model, params, encoded, rng, max_length=length, valid=valid, temperature=temperature
            ).tokens

        run = self._compile(write, loaded.shardings)

        def generate(params, seed) -> Generated:
            rows = []
            for index, batch in enumerate(self.examples.batches):
                rng = jax.random.fold_in(seed, index)
                tokens = to_host(run(params, self._place(batch), rng))
                rows.append(tokens[self._real_rows(batch, index)])
            return self._measure(np.concatenate(rows))

        return generate

    def outputs(self, loaded: LoadedModel, seed: int) -> tuple[Generated, list[Output]]:
        """Writes an output for every example and scores every reference, one host's devices only.

        Args:
          loaded: the model, its parameters on the mesh.
          seed: of sampled outputs (temperature above 0).

        Returns:
          The texts and metrics, among them `reference_log_prob`: the mean log-probability of the
          references' tokens (natural, raw logits, EOS counted); and what was written, an example
          each.
        """
        batches = self.examples.batches
        inputs = _token_rows([batch["encoder_input_tokens"] for batch in batches])
        targets = _token_rows([batch["decoder_target_tokens"] for batch in batches])
        inputs, targets = (rows[: len(self.examples.inputs)] for rows in (inputs, targets))
        input_length = batches[0]["encoder_input_tokens"].shape[1]
        length = batches[0]["decoder_target_tokens"].shape[1]
        generator = Generator(
            loaded, self.mesh, self.rules, self.valid,
            Decoding(max_length=length, temperature=self.temperature, seed=seed),
            length_buckets(input_length), len(batches[0]["example_weights"]), score=True,
        )  # fmt: skip
        written: dict[int, Output] = {}
        for part in generator.outputs(inputs, targets=targets):
            written.update(part)
        outputs = [written[i] for i in range(len(inputs))]
        tokens = np.zeros((len(outputs), length), np.int32)
        for row, output in zip(tokens, outputs, strict=True):
            row[: len(output.tokens[0])] = output.tokens[0]
        measured = self._measure(tokens)
        scores = np.concatenate([output.target_log_probs for output in outputs])
        metrics = {**measured.metrics, "reference_log_prob": float(scores.mean())}
        return dataclasses.replace(measured, metrics=metrics), outputs

    def divergence_meter(
        self, student: LoadedModel, teacher: LoadedModel, max_batches: int | None = 1
    ) -> Callable[[Any, Any, Any], dict[str, float]]:
        """A compiled (student params, teacher params, seed) -> every divergence on Q's own samples.

        The student writes at temperature 1; both models score what it wrote; each divergence is
        averaged over a sequence's tokens, then over sequences (equation 2 of arXiv 2306.13649).
        """
        score = self._compile(
            _divergence_sums(student, teacher, self.valid), student.shardings, teacher.shardings
        )

        def measure(params, teacher_params, seed) -> dict[str, float]:
            sums: dict[str, float] = {}
            for index, batch in enumerate(self.examples.batches[:max_batches]):
                rng = jax.random.fold_in(seed, index)
                for name, value in to_host(
                    score(params, teacher_params, self._place(batch), rng)
                ).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            weight = max(sums.pop("weight"), 1e-9)
            return {name: total / weight for name, total in sums.items()}

        return measure

    def _compile(self, function, *params_shardings):
        rows, whole = meshes.batch_sharding(self.mesh), meshes.replicated(self.mesh)
        compiled = jax.jit(
            function, in_shardings=(*params_shardings, rows, whole), out_shardings=None
        )

        def run(*args):
            with meshes.on_mesh(self.mesh, self.rules):
                return compiled(*args)

        return run

    def _place(self, batch: dict[str, Any]) -> Batch:
        return meshes.place_batch(host_batch(batch), self.mesh)

    def _real_rows(self, batch, index):
        """Which rows of a global batch are examples: only the last batch is padded, at its end."""
        total = len(batch["example_weights"]) * jax.process_count()
        return slice(0, min(total, len(self.examples.inputs) - index * total))

    def _measure(self, tokens) -> Generated:
        texts = tuple(vocabularies.decode_tokens(self.task.vocabulary, tokens))
        lengths = np.sum(tokens > 0, axis=1)
        unfinished = (tokens[:, -1] > 0) & (tokens[:, -1] != self.task.vocabulary.eos_id)
        metrics = {
            **self.task.evaluate(self.examples.targets, texts),
            "output_length": float(lengths.mean()),
            "unfinished": 100 * float(unfinished.mean()),
        }
        return Generated(metrics, texts)

    def fingerprint(self) -> str:
        """What a measurement on this evaluation depends on besides the model, as a hash."""
        digest = hashlib.sha256(f"{self.task.name} {self.temperature}".encode())
        for batch in self.examples.batches:
            digest.update(np.ascontiguousarray(batch["encoder_input_tokens"]))
            digest.update(np.ascontiguousarray(batch["decoder_target_tokens"]))
        for text in self.examples.targets:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def sample_table(self, outputs: Mapping[str, Sequence[str]], rows: int) -> list[dict[str, str]]:
        """The first examples side by side: prompt, every model's output, reference."""
        examples = self.examples
        return [
            {
                "prompt": examples.inputs[i],
                **{name: texts[i] for name, texts in outputs.items()},
                "reference": examples.targets[i],
            }
            for i in range(min(rows, len(examples.inputs)))
        ]


def _divergence_sums(student: LoadedModel, teacher: LoadedModel, valid) -> Callable:
    """(params, teacher params, batch, rng) -> sums of every divergence and their weight."""
    sample_fn = train_step.make_sample_fn(student.model, sample, valid)
    teacher_logits_fn = train_step.make_teacher_logits_fn(teacher.model)

    def every_divergence(student_logits, teacher_logits, targets):
        return {
            name: divergence(student_logits, teacher_logits, valid=valid)
            for name, divergence in divergences.DIVERGENCES.items()
        }

    def sums(params, teacher_params, batch, rng):
        encoded = student.model.encode(params, batch.encoder_input_tokens)
        rows = jnp.arange(batch.example_weights.shape[0])
        rollout = sample_fn(params, encoded, batch, rng, rows)
        inputs = shift_right(rollout.target_tokens)
        hidden = student.model.decode_hidden(params, encoded, inputs)
        coefficients, weight = losses.token_coefficients(rollout)
        _, _, values = fused_token_loss(
            lambda student_logits, *_: jnp.zeros(student_logits.shape[:2], jnp.float32),
            ProjectedLogits(hidden.last, student.model.head(params)),
            teacher_logits_fn(teacher_params, batch, rollout),
            rollout.target_tokens,
            coefficients,
            token_metrics=every_divergence,
        )
        totals = {name: jnp.sum(coefficients * value) for name, value in values.items()}
        return {**totals, "weight": weight}

    return sums


def make_evaluation(
    task: TaskSpec,
    split: str,
    mesh: Mesh,
    rules: Mapping[str, str | None],
    valid: Any,
    *,
    batch_size: int,
    input_length: int,
    target_length: int,
    max_examples: int | None = None,
    temperature: float = 0.0,
) -> Evaluation:
    """Reads a split for evaluation.

    Args:
      task, split: what to measure on.
      mesh, rules: where models run.
      valid: bool [V], ids that may be written.
      batch_size: rows of a batch over all hosts.
      input_length, target_length: in tokens.
      max_examples: the first so many; None uses all.
      temperature: of the outputs; 0 is greedy.

    Returns:
      The evaluation.
    """
    meshes.check_batch_divides(batch_size, mesh)
    shard = (jax.process_index(), jax.process_count())
    examples = pipeline.evaluation_batches(
        task, split, batch_size, input_length, target_length, max_examples, shard
    )
    return Evaluation(task, mesh, rules, examples, valid, temperature)


def evaluation_key(seed: int) -> Any:
    """The key of all evaluations of a run; fold the step in."""
    return jax.random.fold_in(jax.random.PRNGKey(seed), _EVALUATION_KEY)


def _token_rows(arrays: Sequence[np.ndarray]) -> list[list[int]]:
    """The token ids of padded arrays [B, L], row by row, without the padding."""
    return [row[row > 0].tolist() for array in arrays for row in array]


def host_batch(batch: Mapping[str, Any]) -> Batch:
    """The arrays of a pipeline's dictionary as a `Batch`, still on the host."""
    return Batch(
        encoder_input_tokens=batch["encoder_input_tokens"],
        decoder_target_tokens=batch["decoder_target_tokens"],
        example_weights=batch["example_weights"],
    )


def to_host(tree: Any) -> Any:
    """Whole arrays on this host, also those whose shards other hosts hold."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
