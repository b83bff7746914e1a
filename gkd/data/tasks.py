"""The tasks: functions for gin that build and register a seqio task and return a small record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.data import arithmetic as arithmetic_problems
from gkd.data import metrics, prompts, sources, vocabularies
from gkd.data.tensorflow_host import seqio


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What jobs need of a task.

    Attributes:
      name: its name in seqio's registry.
      vocabulary: the seqio vocabulary of inputs and targets.
      task: the seqio task itself; a later task of the same name does not change this one.
      texts: the task's first preprocessor, which makes a row's (or a batch's) texts.
    """

    name: str
    vocabulary: Any
    task: Any
    texts: Callable[[Any], Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits it has."""
        return tuple(self.task.splits)

    def evaluate(self, targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        """Every metric of the task, in percent.

        Args:
          targets: reference texts.
          predictions: generated texts, in the same order.
        """
        values: dict[str, float] = {}
        for metric in self.task.metric_fns:
            values.update(metric(targets=targets, predictions=predictions))
        return values


def summarization(
    name: str = "xsum",
    vocabulary: Any = None,
    files: Mapping[str, str] | None = None,
    directory: str | None = None,
    columns: Sequence[str] | None = None,
    input_field: str = "document",
    target_field: str = "summary",
    prefix: str = "summarize: ",
    tfds_name: str = "xsum:1.1.0",
    tfds_splits: Mapping[str, str] | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.rouge,),
) -> TaskSpec:
    """Summaries: XSum from TFDS, or any files with a document and a summary.

    Args:
      name: the task's name in seqio's registry.
      vocabulary: a seqio vocabulary; by default T5's.
      files: path of each split's file, see `sources.files_source`; None reads TFDS.
      directory: where relative paths start, by default the environment's GKD_DATA.
      columns: names of a TSV file's columns where its first line does not hold them.
      input_field: the field of the text to read.
      target_field: the field of the text to write.
      prefix: put before every input.
      tfds_name: the TFDS data set, its configuration and version.
      tfds_splits: the TFDS split behind each split, by default train, validation, test.
      max_examples: how many of the training rows to use; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.
    """
    source = _source(
        files,
        (input_field, target_field),
        directory,
        columns,
        tfds_name,
        tfds_splits or {split: split for split in ("train", "validation", "test")},
        max_examples,
    )
    texts = prompts.text_to_text(input_field, target_field, prefix)
    return _registered(name, source, texts, vocabulary or vocabularies.t5(), metric_fns)


def translation(
    name: str = "wmt14_en_de",
    vocabulary: Any = None,
    files: Mapping[str, str] | None = None,
    directory: str | None = None,
    columns: Sequence[str] | None = None,
    input_field: str = "en",
    target_field: str = "de",
    prefix: str = "translate English to German: ",
    tfds_name: str = "wmt14_translate/de-en:1.0.0",
    tfds_splits: Mapping[str, str] | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.bleu,),
) -> TaskSpec:
    """Translation: WMT14 English to German from TFDS, or any files with the two sentences.

    Args:
      As `summarization`'s.
    """
    return summarization(
        name, vocabulary, files, directory, columns, input_field, target_field, prefix, tfds_name,
        tfds_splits, max_examples, metric_fns,
    )  # fmt: skip


def gsm8k_cot(
    name: str = "gsm8k_cot",
    vocabulary: Any = None,
    files: Mapping[str, str] | None = None,
    directory: str | None = None,
    columns: Sequence[str] | None = None,
    question_field: str = "question",
    answer_field: str = "answer",
    rationale_field: str | None = None,
    shots: int = 4,
    tfds_name: str = "gsm8k:1.0.0",
    tfds_splits: Mapping[str, str] | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.final_answer,),
) -> TaskSpec:
    """GSM8K with a chain-of-thought prompt: from TFDS, or from files.

    GSM8K has no validation split: by default it is the last 500 training rows.

    Args:
      question_field: the field of the question.
      answer_field: the field of the solution with `#### N`, or, with a rationale, of N alone.
      rationale_field: the field of the solution where the answer stands apart (FLAN's files).
      shots: worked examples before the question, 0 … 4.
      Others: as `summarization`'s.
    """
    fields = [question_field, answer_field] + ([rationale_field] if rationale_field else [])
    source = _source(
        files,
        fields,
        directory,
        columns,
        tfds_name,
        tfds_splits or {"train": "train[:-500]", "validation": "train[-500:]", "test": "test"},
        max_examples,
    )
    texts = prompts.chain_of_thought(question_field, answer_field, rationale_field, shots)
    return _registered(name, source, texts, vocabulary or vocabularies.t5(), metric_fns)


def local_text(
    files: Mapping[str, str],
    name: str = "local_text",
    vocabulary: Any = None,
    directory: str | None = None,
    columns: Sequence[str] | None = None,
    input_field: str = "input",
    target_field: str = "target",
    prefix: str = "",
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.rouge,),
) -> TaskSpec:
    """Any text to any text, from local files with the fields input and target.

    Args:
      As `summarization`'s.
    """
    if not files:
        raise ValueError("local_text.files is empty: give a file for at least one split")
    return summarization(
        name, vocabulary, files, directory, columns, input_field, target_field, prefix,
        max_examples=max_examples, metric_fns=metric_fns,
    )  # fmt: skip


def arithmetic(
    name: str = "arithmetic",
    vocabulary: Any = None,
    rows: Mapping[str, int] | None = None,
    seed: int = 0,
    steps: int = 5,
    minimum_steps: int | None = None,
    digits: int = 1,
    solution: str = "equations",
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.final_answer,),
) -> TaskSpec:
    """Synthetic word problems with worked solutions: no file, no network.

    Args:
      name: the task's name in seqio's registry.
      vocabulary: a seqio vocabulary; by default the small one shipped with the package.
      rows: problems of each split, by default 10000, 500 and 500.
      seed, steps, minimum_steps, digits, solution: see `gkd.data.arithmetic.problems`.
      max_examples: how many of the training rows to use, the first; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.
    """
    _check_max_examples(max_examples)
    sizes = dict(rows or {"train": 10_000, "validation": 500, "test": 500})
    if max_examples is not None and "train" in sizes:
        sizes["train"] = min(sizes["train"], max_examples)

    def rows_of(split: str) -> list[dict[str, str]]:
        made = arithmetic_problems.problems(
            split, sizes[split], seed, steps, minimum_steps, digits, solution
        )
        return [{"input": problem.input, "target": problem.target} for problem in made]

    source = sources.rows_source(rows_of, ("input", "target"), tuple(sizes))
    texts = prompts.text_to_text("input", "target")
    chosen = vocabulary or vocabularies.arithmetic()
    return _registered(name, source, texts, chosen, metric_fns)


def _check_max_examples(max_examples: int | None) -> None:
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples={max_examples} must be at least 1, or None for all rows")


def _source(
    files: Mapping[str, str] | None,
    fields: Sequence[str],
    directory: str | None,
    columns: Sequence[str] | None,
    tfds_name: str,
    tfds_splits: Mapping[str, str],
    max_examples: int | None,
) -> Any:
    _check_max_examples(max_examples)
    if files:
        return sources.files_source(files, fields, directory, columns, max_examples)
    return sources.tfds_source(tfds_name, tfds_splits, max_examples)


def _registered(
    name: str,
    source: Any,
    texts: Callable[[Any], Any],
    vocabulary: Any,
    metric_fns: Sequence[Callable[..., Any]],
) -> TaskSpec:
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
        output_features={"inputs": feature, "targets": feature},
        metric_fns=list(metric_fns),
    )
    return TaskSpec(name, vocabulary, task, texts)
