"""Builds and registers the seqio tasks that gin files choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.data import mixtures, prompts, sources
from gkd.data.task_spec import (
    NUMBERS,
    TaskSpec,
    TfdsData,
    check_max_examples,
    make_task,
    split_sizes,
    task_source,
)
from gkd.errors import InvalidValue
from gkd.metrics import metrics
from gkd.synthetic import arithmetic as arithmetic_problems
from gkd.tables.delimited import TsvFormat, shows_format
from gkd.vocabularies import vocabularies
from gkd.vocabularies.white_space import rule_of

_GSM8K = TfdsData(
    name="gsm8k:1.0.0",
    splits={"train": "train[:-500]", "validation": "train[-500:]", "test": "test"},
)


def summarization(
    name: str = "xsum",
    vocabulary: Any = None,
    files: Mapping[str, str] | None = None,
    directory: str | None = None,
    tsv: TsvFormat | None = None,
    input_field: str = "document",
    target_field: str = "summary",
    prefix: str = "summarize: ",
    tfds: TfdsData | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.rouge,),
    tokenize: str | None = None,
) -> TaskSpec:
    """Builds a summarization task: XSum from TFDS, or files with a document and a summary.

    Args:
      name: name in seqio's registry.
      vocabulary: a seqio vocabulary; by default T5's.
      files: path of the file of each split, see `sources.files_source`; None reads TFDS.
      directory: folder of relative paths; by default the environment variable GKD_DATA.
      tsv: format of CSV and TSV files; by default their first line holds the columns' names.
      input_field: name of the field of the input text; `translation.en` is a nested one.
      target_field: name of the field of the target text, or of the list of references: the first is
        the target, and metrics compare with all.
      prefix: text before every input.
      tfds: TFDS data set to read if `files` is None; by default XSum.
      max_examples: number of training rows to use; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.
      tokenize: sacreBLEU's name of the tokenizer of BLEU and ROUGE; None chooses by the references'
        script, see `gkd.metrics.word_tokens`.

    Returns:
      The record of the task.
    """
    source = task_source(
        files,
        (input_field, target_field),
        directory,
        tsv,
        tfds or TfdsData(name="xsum:1.1.0"),
        max_examples,
        target_field,
    )
    chosen = vocabulary or vocabularies.t5()
    texts = prompts.text_to_text(input_field, target_field, prefix, rule_of(chosen))
    return make_task(
        name, source, texts, chosen, metric_fns, tokenize=tokenize, max_examples=max_examples
    )


def translation(
    name: str = "wmt14_en_de",
    vocabulary: Any = None,
    files: Mapping[str, str] | None = None,
    directory: str | None = None,
    tsv: TsvFormat | None = None,
    input_field: str = "en",
    target_field: str = "de",
    prefix: str = "translate English to German: ",
    tfds: TfdsData | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.bleu,),
    tokenize: str | None = None,
) -> TaskSpec:
    """Builds a translation task: WMT14 English to German from TFDS, or files of sentence pairs.

    Args:
      name, vocabulary, files, directory, tsv, input_field, target_field, prefix, max_examples,
        metric_fns, tokenize: as in `summarization`.
      tfds: TFDS data set to read if `files` is None; by default WMT14 English to German.

    Returns:
      The record of the task.
    """
    return summarization(
        name=name, vocabulary=vocabulary, files=files, directory=directory, tsv=tsv,
        input_field=input_field, target_field=target_field, prefix=prefix,
        tfds=tfds or TfdsData(name="wmt14_translate/de-en:1.0.0"),
        max_examples=max_examples, metric_fns=metric_fns, tokenize=tokenize,
    )  # fmt: skip


def gsm8k_cot(
    name: str = "gsm8k_cot",
    vocabulary: Any = None,
    files: Mapping[str, str] | None = None,
    directory: str | None = None,
    tsv: TsvFormat | None = None,
    question_field: str = "question",
    answer_field: str = "answer",
    rationale_field: str | None = None,
    shots: int = 4,
    tfds: TfdsData | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.final_answer,),
) -> TaskSpec:
    """Builds GSM8K with a chain-of-thought prompt, from TFDS or from files.

    GSM8K has no validation split; by default it consists of the last 500 training rows.

    Args:
      question_field: name of the field of the question.
      answer_field: name of the field of the solution with `#### N`, or of N beside a rationale.
      rationale_field: name of the field of the solution, if the answer is a separate field (FLAN).
      shots: number of worked examples before the question, 0 … 4.
      name, vocabulary, files, directory, tsv, max_examples, metric_fns: as in `summarization`.
      tfds: TFDS data set to read if `files` is None; by default GSM8K.

    Returns:
      The record of the task.

    Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021).
    """
    fields = [question_field, answer_field] + ([rationale_field] if rationale_field else [])
    # A rationale belongs to one answer.
    several = None if rationale_field else answer_field
    source = task_source(files, fields, directory, tsv, tfds or _GSM8K, max_examples, several)
    chosen = vocabulary or vocabularies.t5()
    texts = prompts.chain_of_thought(
        question_field, answer_field, rationale_field, shots, rule_of(chosen)
    )
    return make_task(name, source, texts, chosen, metric_fns, max_examples=max_examples, **NUMBERS)


@shows_format
def local_text(
    files: Mapping[str, str],
    name: str = "local_text",
    vocabulary: Any = None,
    directory: str | None = None,
    input_field: str = "input",
    target_field: str = "target",
    prefix: str = "",
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.rouge,),
    tokenize: str | None = None,
    **tsv: Any,
) -> TaskSpec:
    """Builds a text-to-text task from local files with the fields input and target.

    Args:
      **tsv: columns, delimiter, quoting and escapes of CSV and TSV files, see `TsvFormat`.
      files, name, vocabulary, directory, input_field, target_field, prefix, max_examples,
        metric_fns, tokenize: as in `summarization`.

    Returns:
      The record of the task.
    """
    if not files:
        raise InvalidValue("local_text.files is empty: give a file for at least one split")
    return summarization(
        name=name, vocabulary=vocabulary, files=files, directory=directory,
        tsv=TsvFormat(**tsv),
        input_field=input_field, target_field=target_field, prefix=prefix,
        max_examples=max_examples, metric_fns=metric_fns, tokenize=tokenize,
    )  # fmt: skip


@shows_format
def instructions(
    templates: Sequence[Sequence[str]],
    name: str = "instructions",
    vocabulary: Any = None,
    files: Mapping[str, str] | None = None,
    directory: str | None = None,
    tfds: TfdsData | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.answer_match,),
    answer_of: Callable[[str], Any] | None = metrics.stated_answer,
    extra_fields: Sequence[str] = (),
    **tsv: Any,
) -> TaskSpec:
    """Builds an instruction-tuning task that fills one of several templates with each row.

    Args:
      templates: pairs of an input and a target with fields in braces, see `prompts.instructions`.
      **tsv: columns, delimiter, quoting and escapes of CSV and TSV files, see `TsvFormat`.
      answer_of: function of a generated text to its answer, for votes; None for no answers.
      extra_fields: fields that only a preprocessor of `teacher_inputs` reads.
      name, vocabulary, files, directory, tfds, max_examples, metric_fns: as in `summarization`.

    Returns:
      The record of the task.

    Source: Wei et al., "Finetuned Language Models Are Zero-Shot Learners" (2022).
    """
    if not files and tfds is None:
        raise InvalidValue(f"task {name}: give `files`, or `tfds`")
    chosen = vocabulary or vocabularies.t5()
    texts = prompts.instructions(templates, rule_of(chosen))
    fields = [*prompts.template_fields(templates), *extra_fields]
    source = task_source(files, fields, directory, TsvFormat(**tsv), tfds, max_examples)
    return make_task(
        name, source, texts, chosen, metric_fns, answer_of=answer_of, max_examples=max_examples
    )


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
    """Builds the task of synthetic word problems with worked solutions, without any file.

    Args:
      name: name in seqio's registry.
      vocabulary: a seqio vocabulary; by default the small one of the package.
      rows: number of problems of each split; by default 10000, 500 and 500.
      seed, steps, minimum_steps, digits, solution: as in `gkd.synthetic.arithmetic.problems`.
      max_examples: number of training rows to use, the first ones; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.

    Returns:
      The record of the task.
    """
    sizes = split_sizes(rows, max_examples)

    def rows_of(split: str) -> list[dict[str, str]]:
        made = arithmetic_problems.problems(
            split,
            sizes[split],
            seed,
            steps=steps,
            minimum_steps=minimum_steps,
            digits=digits,
            solution=solution,
        )
        return [{"input": problem.input, "target": problem.target} for problem in made]

    source = sources.rows_source(rows_of, ("input", "target"), tuple(sizes))
    chosen = vocabulary or vocabularies.arithmetic()
    texts = prompts.text_to_text("input", "target", rule=rule_of(chosen))
    return make_task(name, source, texts, chosen, metric_fns, max_examples=max_examples, **NUMBERS)


def from_seqio(
    provider: str,
    name: str | None = None,
    vocabulary: Any = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.exact_match,),
    answer_of: Callable[[str], Any] | None = None,
) -> TaskSpec:
    """Builds a task from any registered seqio task or mixture, by its texts before tokenisation.

    A gin file imports the module that registers it, e.g. `import flan.v2.mixtures`, which the
    command line must allow: `--allow_module=flan`.

    Args:
      provider: name of the registered task or mixture, e.g. `flan_zsopt`.
      name: name of the new task; by default the provider's followed by `_texts`.
      vocabulary: a seqio vocabulary; by default T5's. The provider's own is not used.
      max_examples: number of training rows to use, the first ones; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.
      answer_of: function of a generated text to its answer, for votes; None for no answers.

    Returns:
      The record of the task.

    Raises:
      ValueError: the name is in neither registry, or would replace the provider.
    """
    check_max_examples(max_examples)
    name = name or f"{provider}_texts"
    if name == provider:
        raise InvalidValue(f"task {name!r} would replace the one it reads: give another name")
    source = sources.provider_source(provider, max_examples)
    chosen = vocabulary or vocabularies.t5()
    texts = prompts.text_to_text(*sources.PRETOKENIZED, rule=rule_of(chosen))
    return make_task(
        name, source, texts, chosen, metric_fns, answer_of=answer_of, max_examples=max_examples
    )


def mixture(
    tasks: Sequence[TaskSpec],
    rates: Sequence[float | int] | None = None,
    name: str = "mixture",
    maximum: int | None = None,
    temperature: float | int = 1.0,
    rows: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (),
) -> TaskSpec:
    """Mixes several tasks like seqio's mixtures, but in an order that can be resumed.

    The split `train` interleaves the components' rows at the given rates (see
    `mixtures.row_counts` and `mixtures.interleaved`); in an epoch every row occurs at least once.
    Every other split holds each row of the components that have the split once.

    Args:
      tasks: the components, of one vocabulary and with different names.
      rates: relative rates, one per component; by default `mixtures.proportional_rates`.
      name: name of the mixture in seqio's registry.
      maximum, temperature: K in rows and T of the proportional rates.
      rows: number of rows of a training epoch, for a shorter epoch that leaves out rows.
      metric_fns: metrics over all rows; the components' own metrics are computed on their rows if
        inputs are given, see `TaskSpec.evaluate`.

    Returns:
      The record of the mixture.

    Raises:
      ValueError: components or rates do not fit together.
    """
    mixtures.check_components(tasks, rates, rows)
    components = {task.name: task for task in tasks}

    def tasks_with(split: str) -> list[tuple[int, TaskSpec]]:
        return [(i, task) for i, task in enumerate(tasks) if split in task.splits]

    def read(split: str) -> list[mixtures.Texts]:
        return [mixtures.read_texts(t.task.source, t.texts, split) for _, t in tasks_with(split)]

    def counts_of(split: str, sizes: Sequence[int]) -> Sequence[int]:
        if split != "train":
            return sizes
        chosen = rates and [rates[i] for i, _ in tasks_with(split)]
        chosen = chosen or mixtures.proportional_rates(sizes, maximum, temperature)
        return mixtures.row_counts(sizes, chosen, rows)

    component_of = mixtures.component_finder(components)
    scored = [task for task in tasks if task.choices is not None]
    if 0 < len(scored) < len(tasks):
        raise InvalidValue(
            f"mixture {name}: the options of {scored[0].name} are scored, while other components "
            "generate text: evaluate them apart, or choose one SCORING"
        )

    def choices(text: str, target: str) -> tuple[tuple[str, ...], int]:
        return components[component_of(text, target)].choices(text, target)

    same_answers = all(task.answer_of is tasks[0].answer_of for task in tasks)
    answers = {key: getattr(tasks[0], key) for key in NUMBERS} if same_answers else {}
    return make_task(
        name,
        mixtures.mixed_source(read, sorted({s for t in tasks for s in t.splits}), counts_of),
        lambda texts: texts,
        tasks[0].vocabulary,
        metric_fns,
        features=tasks[0].features,
        group_of=component_of,
        choices=choices if scored else None,
        **answers,
        components=components,
        teacher_input_length=tasks[0].teacher_input_length,
        chat=tasks[0].chat,
    )
