"""Evaluation of a model on a task: outputs and their metrics, divergences, a sample table."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gkd.data import pipeline
from gkd.data.length_buckets import input_lengths
from gkd.data.part_lengths import PART_FIELDS
from gkd.data.task_spec import BATCH_COLUMNS
from gkd.data.tasks import TaskSpec
from gkd.distill.types import Batch
from gkd.evaluate.divergence_meter import DivergenceMeter, Divergences
from gkd.evaluate.option_scoring import OptionScorer
from gkd.evaluate.reward_scoring import RewardScorer
from gkd.infer.batched_program import to_host
from gkd.infer.decode_options import Decoding
from gkd.infer.generator import Generator, Output
from gkd.metrics import word_tokens
from gkd.metrics.answers import references_in
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from gkd.vocabularies import vocabularies
from gkd.vocabularies.token_rows import encode_options, ended

_EVALUATION_KEY = 0x6576616C  # folded into the seed: no training step draws from it


@dataclasses.dataclass(frozen=True)
class Generated:
    """The outputs of a model on an evaluation set, in one way of decoding.

    Attributes:
      metrics: the task's in percent, the mean over an example's samples; what several samples show
        together (`TaskSpec.evaluate_samples`); facts about the outputs' lengths.
      records: for every example, in the set's order, each of its samples: `text`, `tokens` and
        `log_prob`; where options were scored, the best one's `text` and all `options`' scores.
      reference_log_probs: for every example the log-probability of each of its reference's tokens
        (natural, raw logits, EOS counted), where asked for.
      signatures: tokenizer and version of metrics that depend on them.
    """

    metrics: dict[str, float]
    records: list[list[dict[str, Any]]]
    reference_log_probs: list[list[float]] | None = None
    signatures: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """The first output of every example."""
        return tuple(record[0]["text"] for record in self.records)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A split of a task, ready to measure models on.

    Attributes:
      task: the task.
      mesh: mesh on which models run.
      examples: the split's batches and texts.
      batch_size: rows of a batch, over all hosts.
      valid: bool [V], ids that may be written.
      reward: a function of gkd.metrics.reward_functions that scores every output; None scores none.
      reward_model: the model of a reward that is one.
    """

    task: TaskSpec
    mesh: Mesh
    examples: pipeline.EvaluationSet
    batch_size: int
    valid: Any
    reward: Any = None
    reward_model: LoadedModel | None = None

    def generator(
        self,
        loaded: LoadedModel,
        decoding: Decoding | None = None,
        score: bool = False,
        teacher: bool = False,
    ) -> Callable[..., Generated]:
        """A compiled function of a model's parameters that answers every example.

        A task with options (`TaskSpec.choices`) is answered with the most likely of them: nothing
        is written, and decoding and score mean nothing.

        Args:
          loaded: the model.
          decoding: sampling or beam search; None is greedy.
          score: also give the references' log-probabilities.
          teacher: the model reads the teacher's prompts, where the task has them.

        Returns:
          (parameters on the mesh) -> Generated.
        """
        if self.task.choices is not None:
            return self._option_generator(loaded, teacher)
        decoding = decoding or Decoding(max_length=self.target_length)
        generator = Generator(
            loaded, self.mesh, self.valid, decoding, *self._batching(teacher), score
        )
        prompts = self._prompts(teacher)

        def generate(params) -> Generated:
            written: dict[int, Output] = {}
            for part in generator.outputs(prompts, targets=self._targets, params=params):
                written.update(part)
            return self._measured([written[i] for i in range(len(prompts))], decoding, score)

        return generate

    def divergences(
        self,
        student: LoadedModel,
        teacher: LoadedModel,
        max_batches: int | None = 1,
        keep_tokens: bool = False,
    ) -> Callable[[Any, Any, Any], Divergences]:
        """A compiled (student params, teacher params, key) -> every divergence between the two.

        Args:
          student, teacher: the models.
          max_batches: number of batches, the first; None uses all.
          keep_tokens: also return every sequence with its KL at each token.
        """
        meter = DivergenceMeter(student, teacher, self.mesh, self.valid, keep_tokens)
        batches = [host_batch(batch) for batch in self.examples.batches[:max_batches]]
        return lambda *arguments: meter.measure(*arguments[:2], batches, arguments[2])

    @property
    def target_length(self) -> int:
        """In tokens: the references' and the outputs'."""
        return self.examples.batches[0]["decoder_target_tokens"].shape[1]

    def _batching(self, teacher: bool = False) -> tuple[tuple[int, ...], int]:
        """The lengths that prompts are padded to, and rows of a batch over all hosts."""
        longest = self.examples.batches[0][self._prompt_column(teacher)].shape[1]
        lengths = np.array([len(prompt) for prompt in self._prompts(teacher)])
        batches = -(-len(lengths) // self.batch_size)  # more lengths would only be compiled
        return input_lengths(lengths, longest, most=batches), self.batch_size

    def _prompt_column(self, teacher: bool) -> str:
        feature = "inputs"
        if teacher and "teacher_inputs" in self.task.features:
            feature = "teacher_inputs"
        return BATCH_COLUMNS[feature]

    def _prompts(self, teacher: bool) -> list[list[int]]:
        """The token ids of every example's prompt, of the student or of the teacher."""
        column = self._prompt_column(teacher)
        if column == BATCH_COLUMNS["inputs"]:
            return self._inputs
        return self._token_rows(column)

    @functools.cached_property
    def _inputs(self) -> list[list[int]]:
        return self._token_rows("encoder_input_tokens")

    @functools.cached_property
    def _targets(self) -> list[list[int]]:
        return self._token_rows("decoder_target_tokens")

    def _token_rows(self, name):
        """The token ids of every example, without the padding, also of other hosts' rows."""
        placed = (meshes.place_batch(batch[name], self.mesh) for batch in self.examples.batches)
        arrays = [to_host(array) for array in placed]
        padding = self.task.vocabulary.pad_id
        rows = [row[row != padding].tolist() for array in arrays for row in array]
        return rows[: len(self.examples.inputs)]  # only the last batch is padded, at its end

    def _option_generator(self, loaded, teacher) -> Callable[..., Generated]:
        texts = [
            self.task.choices(*row)[0]
            for row in zip(self.examples.inputs, self.examples.targets, strict=True)
        ]
        vocabulary = self.task.vocabulary
        known = sorted({option for row in texts for option in row})
        encoded = encode_options(vocabulary, known, after_text=self.task.chat is None)
        ids = dict(zip(known, encoded, strict=True))
        scorer = OptionScorer(
            loaded, self.mesh, [[ids[option] for option in row] for row in texts],
            *self._batching(teacher),
        )  # fmt: skip
        prompts = self._prompts(teacher)

        def choose(params) -> Generated:
            records = []
            for options, scores in zip(texts, scorer.scores(params, prompts), strict=True):
                best = int(np.argmax(scores))  # of equals the first
                scored = dict(zip(options, scores, strict=True))
                records.append([{"text": options[best], "options": scored}])
            with word_tokens.collected_signatures() as signatures:
                return Generated(self._task_metrics(records), records, signatures=signatures)

        return choose

    def _measured(self, outputs: Sequence[Output], decoding, score) -> Generated:
        """The texts and metrics of what was written."""
        tokens = [row for output in outputs for row in output.tokens]
        log_probs = [value for output in outputs for value in output.log_probs]
        texts = vocabularies.decode_tokens(self.task.vocabulary, tokens)
        flat = [
            {"text": text, "tokens": row, "log_prob": value}
            for text, row, value in zip(texts, tokens, log_probs, strict=True)
        ]
        size = decoding.samples
        records = [flat[i : i + size] for i in range(0, len(flat), size)]
        with word_tokens.collected_signatures() as signatures:
            metrics = self._task_metrics(records)
            if decoding.temperature:
                samples = [[record["text"] for record in row] for row in records]
                metrics |= self.task.evaluate_samples(self.examples.references, samples)
        if self._scorer is not None:
            metrics["reward"] = self._reward(texts, tokens, size)
        metrics["output_length"] = sum(map(len, tokens)) / len(tokens)
        unfinished = sum(not ended(self.task.vocabulary, row) for row in tokens)
        metrics["unfinished"] = 100 * unfinished / len(tokens)
        scores = [output.target_log_probs for output in outputs] if score else None
        return Generated(metrics, records, scores, signatures)

    @functools.cached_property
    def _scorer(self) -> RewardScorer | None:
        if self.reward is None:
            return None
        return RewardScorer(
            self.reward, self.reward_model, self.task.vocabulary, self.mesh,
            self.target_length, *self._batching(),
        )  # fmt: skip

    def _reward(self, texts, tokens, size) -> float:
        """The mean reward of outputs, `size` of each example, in percent."""
        prompts, ids, references = (
            [row for row in column for _ in range(size)]
            for column in (self.examples.inputs, self._inputs, self.examples.targets)
        )
        scores = self._scorer.scores(prompts, ids, texts, tokens, references)
        return 100 * sum(scores) / len(scores)

    def _task_metrics(self, records) -> dict[str, float]:
        """The task's metrics of an example's first samples, of the second ones, …, averaged."""
        examples = self.examples
        columns = zip(*([record["text"] for record in row] for row in records), strict=True)
        each = [
            self.task.evaluate(examples.references, texts, inputs=examples.inputs)
            for texts in columns
        ]
        return {name: sum(values[name] for values in each) / len(each) for name in each[0]}

    def fingerprint(self) -> str:
        """Hashes everything besides the model that a measurement depends on."""
        answers = "options" if self.task.choices else "greedy"
        digest = hashlib.sha256(f"{self.task.name} {answers}".encode())
        for batch in self.examples.batches:
            for name in self.task.features:
                digest.update(np.ascontiguousarray(batch[BATCH_COLUMNS[name]]))
        for references in self.examples.references:
            for text in references_in(references):
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


def make_evaluation(
    task: TaskSpec,
    split: str,
    mesh: Mesh,
    valid: Any,
    *,
    batch_size: int,
    input_length: int,
    target_length: int,
    max_examples: int | None = None,
    reward: Any = None,
    reward_model: LoadedModel | None = None,
) -> Evaluation:
    """Reads a split for evaluation.

    Args:
      task, split: the data to measure on.
      mesh: mesh on which models run.
      valid: bool [V], ids that may be written.
      batch_size: rows of a batch over all hosts.
      input_length, target_length: in tokens.
      max_examples: the first so many; None uses all.
      reward, reward_model: see `Evaluation`.

    Returns:
      The evaluation.
    """
    own = meshes.own_rows(mesh, batch_size)
    examples = pipeline.evaluation_batches(
        task, split, batch_size, input_length, target_length, max_examples, own
    )
    return Evaluation(task, mesh, examples, batch_size, valid, reward, reward_model)


def evaluation_key(seed: int) -> Any:
    """The key of all evaluations of a run; fold the step in."""
    return jax.random.fold_in(jax.random.PRNGKey(seed), _EVALUATION_KEY)


def host_batch(batch: Mapping[str, Any]) -> Batch:
    """Collects the arrays of a pipeline's dictionary in a `Batch`; they stay on the host."""
    names = (*BATCH_COLUMNS.values(), "example_weights", "places", *PART_FIELDS.values())
    return Batch(**{name: batch[name] for name in names if name in batch})
