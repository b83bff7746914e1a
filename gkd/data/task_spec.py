"""The record of a task: its features, its texts, its metrics and the parts that its rows form."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidValue
from gkd.metrics import calculator, sample_metrics, word_tokens
from gkd.vocabularies.tensorflow_host import seqio

# The batch's array of token ids for each feature of a task, in the order of TokenizedSplit.columns.
BATCH_COLUMNS = {
    "inputs": "encoder_input_tokens",
    "targets": "decoder_target_tokens",
    "teacher_inputs": "teacher_encoder_input_tokens",
}
# A solution's final number, for votes. The calculator corrects what a model wrote, not the data.
NUMBERS = {
    "answer_of": functools.partial(calculator.final_number, calculator=True),
    "reference_answer_of": calculator.final_number,
}


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What jobs need of a task.

    Attributes:
      name: its name in seqio's registry.
      vocabulary: the seqio vocabulary of inputs and targets.
      task: the seqio task itself; a later task of the same name does not change this one.
      texts: the task's first preprocessor, which makes a row's (or a batch's) texts.
      choices: for tasks whose options are scored by log-likelihood: function of a row's input and
        target text to (the option texts, the index of the right one; -1 where none is right). The
        prediction to evaluate is the text of the best option.
      answer_of: function of a generated text to its answer, compared by ==, for majority votes and
        rewards; None where a text gives none.
      reference_answer_of: the same for a reference; by default `answer_of`.
      group_of: function of a row's input and target text to the part of the task it belongs to: a
        subject, a language, a mixture's component.
      components: of a mixture, by their names.
      tokenize: the tokenizer of BLEU, ROUGE and Self-BLEU, one of sacreBLEU's names; None chooses
        by script, see `word_tokens`.
      max_examples: the most training rows that it uses; None where it uses all.
      teacher_input_length: tokens of a teacher prompt, where the task has the feature
        `teacher_inputs`; None is the student's input length.
    """

    name: str
    vocabulary: Any
    task: Any
    texts: Callable[[Any], Any]
    choices: Callable[[str, str], tuple[tuple[str, ...], int]] | None = None
    answer_of: Callable[[str], Any] | None = None
    reference_answer_of: Callable[[str], Any] | None = None
    group_of: Callable[[str, str], str] | None = None
    components: Mapping[str, TaskSpec] = dataclasses.field(default_factory=dict)
    tokenize: str | None = None
    max_examples: int | None = None
    teacher_input_length: int | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """Names of its features: inputs, targets, and teacher_inputs where the teacher's differ."""
        return tuple(name for name in BATCH_COLUMNS if name in self.task.output_features)

    def feature_lengths(self, input_length: int, target_length: int) -> dict[str, int]:
        """Computes the length in tokens of each feature's column in a batch.

        Args:
          input_length: tokens of a student's prompt.
          target_length: tokens of a target.

        Returns:
          Lengths by feature, in the order of `features`.
        """
        lengths = {
            "inputs": input_length,
            "targets": target_length,
            "teacher_inputs": self.teacher_input_length or input_length,
        }
        return {name: lengths[name] for name in self.features}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits it has."""
        return tuple(self.task.splits)

    def check_batch(self, batch_size: int) -> None:
        """Raises ValueError where `max_examples` is fewer rows than a batch; no data is read.

        Args:
          batch_size: rows of a batch over all hosts.
        """
        if self.max_examples is not None and self.max_examples < batch_size:
            raise InvalidValue(
                f"MAX_EXAMPLES is {self.max_examples}, fewer than a batch of {batch_size}, which "
                "would hold rows twice: raise it, or lower BATCH_SIZE"
            )

    def evaluate(
        self,
        targets: Sequence[str],
        predictions: Sequence[str],
        inputs: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Every metric of the task, in percent.

        Args:
          targets: reference texts.
          predictions: generated texts, in the same order.
          inputs: the prompts; with them a task of several parts (see `group_of`) also measures each
            part, a mixture's by the component's own metrics.

        Returns:
          The metrics over all rows; those of each part as `part/metric`; and `macro_metric`, the
          mean over the parts of every metric that all of them have.

        Raises:
          ValueError: if the texts are none or not equally many, or there is nothing to measure.
        """
        values: dict[str, float] = {}
        for metric in self.task.metric_fns:
            options = {}
            if self.tokenize is not None and "tokenize" in inspect.signature(metric).parameters:
                options["tokenize"] = self.tokenize
            values.update(metric(targets=targets, predictions=predictions, **options))
        if inputs is not None and self.group_of is not None:
            values.update(self._evaluate_parts(targets, predictions, inputs))
        if not values:
            raise ValueError(
                f"task {self.name} has no metrics over all its rows: give the inputs as well"
            )
        return values

    def _evaluate_parts(self, targets, predictions, inputs) -> dict[str, float]:
        rows: dict[str, list[int]] = {}
        for i, (prompt, target) in enumerate(zip(inputs, targets, strict=True)):
            rows.setdefault(self.group_of(prompt, target), []).append(i)
        parts = {}
        for name in sorted(rows):
            chosen = [[column[i] for i in rows[name]] for column in (targets, predictions, inputs)]
            part = self.components.get(name) or dataclasses.replace(self, group_of=None)
            parts[name] = part.evaluate(*chosen)
        values = {f"{name}/{key}": value for name in parts for key, value in parts[name].items()}
        for key in sorted(set.intersection(*(set(part) for part in parts.values()))):
            values[f"macro_{key}"] = sum(part[key] for part in parts.values()) / len(parts)
        return values

    def evaluate_samples(
        self, targets: Sequence[str], samples: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """What several samples a prompt show, in percent: diversity, and maj@k where they answer.

        Args:
          targets: reference texts.
          samples: k generated texts a prompt, in the same order.

        Returns:
          distinct_1 and distinct_2; self_bleu, if k is 2 or more; maj@k, if the task has answers.
        """
        values = sample_metrics.distinct(samples)
        if len(samples[0]) > 1:
            values.update(sample_metrics.self_bleu(samples, self.tokenize))
        if self.answer_of is not None:
            values.update(
                sample_metrics.majority(targets, samples, self.answer_of, self.reference_answer_of)
            )
        return values


def make_task(
    name: str,
    source: Any,
    texts: Callable[[Any], Any],
    vocabulary: Any,
    metric_fns: Sequence[Callable[..., Any]],
    features: Sequence[str] = ("inputs", "targets"),
    **fields: Any,
) -> TaskSpec:
    """Register a seqio task over rows that become texts; it replaces one of the same name.

    Args:
      name: the task's name in seqio's registry.
      source: a seqio data source.
      texts: function of a row, or a batch of rows, to the text of every feature, and `empty`.
      vocabulary: a seqio vocabulary.
      metric_fns: functions of (targets, predictions) to a dictionary.
      features: names of BATCH_COLUMNS; `teacher_inputs` gives the teacher another prompt.
      **fields: further fields of the `TaskSpec`.

    Raises:
      ValueError: a tokenizer that cannot be used here.
    """
    word_tokens.check_tokenizer(fields.get("tokenize"))
    feature = seqio.Feature(vocabulary, add_eos=True, required=True)
    seqio.TaskRegistry.remove(name)  # gin builds the task anew at each use of its macro
    task = seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            lambda dataset: dataset.map(texts),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features=dict.fromkeys(features, feature),
        metric_fns=list(metric_fns),
    )
    return TaskSpec(name, vocabulary, task, texts, **fields)


def check_max_examples(max_examples: int | None) -> None:
    """Raises ValueError if a number of rows is below 1; None stands for all rows."""
    if max_examples is not None and max_examples < 1:
        raise InvalidValue(f"max_examples={max_examples} must be at least 1, or None for all rows")
