"""The record of a task: features, texts, metrics, and groups of rows that are evaluated apart."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.data import sources
from gkd.errors import InvalidValue
from gkd.metrics import calculator, sample_metrics, word_tokens
from gkd.metrics.answers import Reference, references_in
from gkd.tables.delimited import TsvFormat
from gkd.vocabularies import token_rows
from gkd.vocabularies.chat_templates import ChatFormat
from gkd.vocabularies.tensorflow_host import seqio, tf

# The batch's array of token ids for each feature of a task, in the order of TokenizedSplit.columns.
BATCH_COLUMNS = {
    "inputs": "encoder_input_tokens",
    "targets": "decoder_target_tokens",
    "teacher_inputs": "teacher_encoder_input_tokens",
}
# A solution's final number, for votes. The calculator corrects completions, not references.
NUMBERS = {
    "answer_of": functools.partial(calculator.final_number, calculator=True),
    "reference_answer_of": calculator.final_number,
}


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task as training, evaluation and inference use it.

    Attributes:
      name: name in seqio's registry.
      vocabulary: the seqio vocabulary of inputs and targets.
      task: the seqio task itself; a later task of the same name does not change this one.
      texts: the task's first preprocessor, a function of a row (or batch) to its texts.
      choices: for tasks whose options are scored by log-likelihood: function of a row's input and
        target text to (texts of the options, index of the correct one or -1). The prediction is the
        text of the most likely option.
      completion_of: function of a generated text to the part that the metrics read: up to the next
        question of a few-shot prompt; None for the whole text.
      answer_of: function of a generated text to its answer, compared by ==, for majority votes and
        rewards; None for a text without an answer.
      reference_answer_of: the same function for references; by default `answer_of`.
      group_of: function of a row's input and target text to the name of its group: a subject, a
        language, or the component of a mixture.
      components: components of a mixture by name.
      tokenize: sacreBLEU's name of the tokenizer of BLEU, ROUGE and Self-BLEU; None chooses by
        script, see `word_tokens`.
      max_examples: greatest number of training rows to use; None uses all.
      teacher_input_length: greatest length of the teacher's prompt in tokens, for tasks with the
        feature `teacher_inputs`; None is the student's input length.
      chat: format of prompts as chats, which models read in place of the texts; None for plain
        prompts.
    """

    name: str
    vocabulary: Any
    task: Any
    texts: Callable[[Any], Any]
    choices: Callable[[str, str], tuple[tuple[str, ...], int]] | None = None
    completion_of: Callable[[str], str] | None = None
    answer_of: Callable[[str], Any] | None = None
    reference_answer_of: Callable[[str], Any] | None = None
    group_of: Callable[[str, str], str] | None = None
    components: Mapping[str, TaskSpec] = dataclasses.field(default_factory=dict)
    tokenize: str | None = None
    max_examples: int | None = None
    teacher_input_length: int | None = None
    chat: ChatFormat | None = None

    def encode(self, feature: str, texts: Sequence[str]) -> list[list[int]]:
        """Encodes the texts of a feature to whole rows of token ids, see `token_rows`.

        Args:
          feature: a name of BATCH_COLUMNS.
          texts: texts of the rows.
        """
        return encode_feature(self.vocabulary, self.chat, feature, texts)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features: inputs, targets, and teacher_inputs if the teacher's differ."""
        return tuple(name for name in BATCH_COLUMNS if name in self.task.output_features)

    def feature_lengths(self, input_length: int, target_length: int) -> dict[str, int]:
        """Computes the length in tokens of each feature's column in a batch.

        Args:
          input_length: length of the student's prompt in tokens.
          target_length: length of a target in tokens.

        Returns:
          Lengths by feature, in the order of `features`.
        """
        lengths = {
            "inputs": input_length,
            "targets": target_length,
            "teacher_inputs": (
                input_length if self.teacher_input_length is None else self.teacher_input_length
            ),
        }
        return {name: lengths[name] for name in self.features}

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.task.splits)

    def check_batch(self, batch_size: int) -> None:
        """Checks that `max_examples` fills at least one batch, without reading data.

        Args:
          batch_size: number of rows of a batch over all hosts.

        Raises:
          ValueError: `max_examples` is smaller than the batch.
        """
        if self.max_examples is not None and self.max_examples < batch_size:
            raise InvalidValue(
                f"MAX_EXAMPLES is {self.max_examples}, fewer than a batch of {batch_size}, which "
                "would hold rows twice: raise it, or lower BATCH_SIZE"
            )

    def evaluate(
        self,
        targets: Sequence[Reference],
        predictions: Sequence[str],
        inputs: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Computes every metric of the task in percent.

        Args:
          targets: reference texts; of a row with several references a sequence of them.
          predictions: generated texts, in the same order.
          inputs: the prompts; with them a task with groups (see `group_of`) is also evaluated per
            group, the components of a mixture by their own metrics.

        Returns:
          The metrics over all rows; those of each group as `group/metric`; and `macro_metric`, the
          mean over groups, of every metric that all groups have.

        Raises:
          ValueError: there are no texts, their numbers differ, or the task has no metrics.
        """
        predictions = self._completions(predictions)
        values: dict[str, float] = {}
        for metric in self.task.metric_fns:
            options = {}
            if self.tokenize is not None and "tokenize" in inspect.signature(metric).parameters:
                options["tokenize"] = self.tokenize
            values.update(metric(targets=targets, predictions=predictions, **options))
        if inputs is not None and self.group_of is not None:
            values.update(self._evaluate_groups(targets, predictions, inputs))
        if not values:
            raise ValueError(
                f"task {self.name} has no metrics over all its rows: give the inputs as well"
            )
        return values

    def _completions(self, texts: Sequence[str]) -> Sequence[str]:
        return texts if self.completion_of is None else [self.completion_of(t) for t in texts]

    def _evaluate_groups(self, targets, predictions, inputs) -> dict[str, float]:
        rows: dict[str, list[int]] = {}
        for i, (prompt, target) in enumerate(zip(inputs, targets, strict=True)):
            rows.setdefault(self.group_of(prompt, references_in(target)[0]), []).append(i)
        groups = {}
        for name in sorted(rows):
            chosen = [[column[i] for i in rows[name]] for column in (targets, predictions, inputs)]
            task = self.components.get(name) or dataclasses.replace(self, group_of=None)
            groups[name] = task.evaluate(*chosen)
        values = {f"{name}/{key}": value for name in groups for key, value in groups[name].items()}
        for key in sorted(set.intersection(*(set(group) for group in groups.values()))):
            values[f"macro_{key}"] = sum(group[key] for group in groups.values()) / len(groups)
        return values

    def evaluate_samples(
        self, targets: Sequence[Reference], samples: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Computes the metrics of several samples in percent: diversity, maj@k and pass@k.

        Args:
          targets: reference texts, as in `evaluate`.
          samples: k generated texts per prompt, in the same order.

        Returns:
          distinct_1, distinct_2, distinct_samples; self_bleu, if k is 2 or more; maj@k and
          pass@1, pass@2, … pass@k, if the task has answers.
        """
        samples = [self._completions(texts) for texts in samples]
        values = sample_metrics.distinct(samples)
        if len(samples[0]) > 1:
            values.update(sample_metrics.self_bleu(samples, self.tokenize))
        if self.answer_of is not None:
            reading = targets, samples, self.answer_of, self.reference_answer_of
            values |= sample_metrics.majority(*reading) | sample_metrics.pass_at(*reading)
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
    """Registers a seqio task over rows of text, replacing a task of the same name.

    Args:
      name: name in seqio's registry.
      source: a seqio data source.
      texts: function of a row, or a batch of rows, to the text of every feature, and `empty`.
      vocabulary: a seqio vocabulary.
      metric_fns: functions of (targets, predictions) to a dictionary.
      features: names out of BATCH_COLUMNS; `teacher_inputs` gives the teacher another prompt.
      **fields: further fields of the `TaskSpec`; `chat` also changes the tokens.

    Returns:
      The record of the task.

    Raises:
      ValueError: the tokenizer is unknown or cannot run here.
    """
    word_tokens.check_tokenizer(fields.get("tokenize"))
    chat = fields.get("chat")
    # seqio's own steps where rows are T5's; only they append EOS.
    plain = chat is None and token_rows.ends_prompts(vocabulary)
    steps = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    feature = seqio.Feature(vocabulary, add_eos=plain, required=True)
    seqio.TaskRegistry.remove(name)  # gin builds the task anew at each use of its macro
    task = seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            lambda dataset: dataset.map(texts),
            *(steps if plain else [_tokenizer(vocabulary, chat, features)]),
        ],
        output_features=dict.fromkeys(features, feature),
        metric_fns=list(metric_fns),
    )
    return TaskSpec(name, vocabulary, task, texts, **fields)


def encode_feature(
    vocabulary: Any, chat: ChatFormat | None, feature: str, texts: Sequence[str]
) -> list[list[int]]:
    """Encodes texts of a feature to whole rows of token ids.

    Args:
      vocabulary: a seqio vocabulary.
      chat: format of prompts; None for plain ones.
      feature: a name of BATCH_COLUMNS; all but targets are prompts.
      texts: texts of the rows.

    Returns:
      Ids of every row. A target that follows a plain prompt of a decoder-only model begins with a
      space.
    """
    if feature == "targets":
        after_text = chat is None
        texts = [token_rows.continued(vocabulary, text, after_text) for text in texts]
        return token_rows.encode_targets(vocabulary, texts)
    return token_rows.encode_prompts(vocabulary, texts if chat is None else chat.render(texts))


def _tokenizer(vocabulary, chat, features):
    """Builds the seqio step that tokenises the texts of a row on the host."""

    def encode(name: str, text: Any) -> Any:
        def rows(value: Any) -> Any:
            return tf.constant(encode_feature(vocabulary, chat, name, [value.numpy().decode()])[0])

        ids = tf.py_function(rows, [text], tf.int32)
        ids.set_shape([None])
        return ids

    def tokenized(row: Mapping[str, Any]) -> dict[str, Any]:
        ids = {name: encode(name, row[name]) for name in features}
        return {**row, **{f"{name}_pretokenized": row[name] for name in features}, **ids}

    return lambda dataset: dataset.map(tokenized)


def check_max_examples(max_examples: int | None) -> None:
    """Checks the number of training rows to use.

    Args:
      max_examples: number of rows; None for all rows.

    Raises:
      ValueError: the number is below 1.
    """
    if max_examples is not None and max_examples < 1:
        raise InvalidValue(f"max_examples={max_examples} must be at least 1, or None for all rows")


def split_sizes(rows: Mapping[str, int] | None, max_examples: int | None) -> dict[str, int]:
    """Determines the rows of each split of problems that are made from a seed.

    Args:
      rows: number of rows by split; None is 10000 for training, 500 for each other split.
      max_examples: number of training rows to use; None for all.

    Raises:
      ValueError: `max_examples` is below 1.

    >>> split_sizes({"train": 9, "test": 5}, 7)
    {'train': 7, 'test': 5}
    """
    check_max_examples(max_examples)
    sizes = dict(rows or {"train": 10_000, "validation": 500, "test": 500})
    if max_examples is not None and "train" in sizes:
        sizes["train"] = min(sizes["train"], max_examples)
    return sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsData:
    """A data set of TFDS.

    Attributes:
      name: name, configuration and version: `xsum:1.1.0`.
      splits: TFDS split of each split of the task; None is train, validation and test.
    """

    name: str
    splits: Mapping[str, str] | None = None


def task_source(
    files: Mapping[str, str] | None,
    fields: Sequence[str],
    directory: str | None,
    tsv: TsvFormat | None,
    tfds: TfdsData | None,
    max_examples: int | None,
    target_field: str | None = None,
) -> Any:
    """Builds the source of a task's rows: local files, or else a data set of TFDS.

    Args:
      files: path of the file of each split, see `sources.files_source`; None reads TFDS.
      fields: names of the fields to read.
      directory: folder of relative paths.
      tsv: format of CSV and TSV files; by default their first line holds the columns' names.
      tfds: TFDS data set; None if `files` are given.
      max_examples: number of training rows to use, the first ones; None uses all.
      target_field: the field of files that may hold a list of references.

    Returns:
      A seqio data source.
    """
    check_max_examples(max_examples)
    if files:
        return sources.files_source(files, fields, directory, tsv, max_examples, target_field)
    splits = tfds.splits or {split: split for split in ("train", "validation", "test")}
    return sources.tfds_source(tfds.name, splits, max_examples)
