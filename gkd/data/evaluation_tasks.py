"""Builds the evaluation-only tasks few-shot MMLU, BIG-Bench Hard and MGSM."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gkd.data import few_shot, mixtures, prompts, sources
from gkd.data.few_shot import Exemplars, Question
from gkd.data.task_spec import NUMBERS, TaskSpec, check_max_examples, make_task
from gkd.errors import InvalidValue
from gkd.metrics import metrics
from gkd.tables.delimited import TsvFormat
from gkd.tables.text_files import read_text
from gkd.vocabularies import vocabularies
from gkd.vocabularies.white_space import ONE_LINE, rule_of

SCORINGS = ("options", "generation")


def mmlu(
    files: Mapping[str, str],
    exemplars: str,
    name: str = "mmlu",
    vocabulary: Any = None,
    directory: str | None = None,
    shots: int = 5,
    scoring: str = "options",
    input_length: int | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.multiple_choice,),
) -> TaskSpec:
    """Builds MMLU: multiple-choice questions of 57 subjects in a few-shot prompt.

    Rows hold `subject`, `question`, `choices` (a list of texts) and `answer` (the index of the
    correct choice, as text). The target is its letter.

    Args:
      files: path of the questions of each split, see `sources.configured_rows`.
      exemplars: path of the development rows; the first `shots` of a subject are its examples.
      name: name in seqio's registry.
      vocabulary: a seqio vocabulary; by default T5's.
      directory: folder of relative paths; by default the environment variable GKD_DATA.
      shots: number of worked examples before a question.
      scoring: `options` to score the letters by log-likelihood (`TaskSpec.choices`), or
        `generation` to extract the letter from a completion.
      input_length: greatest length of a prompt in tokens, for which examples are left out; None
        for no limit.
      max_examples: number of questions per split, spread over all of them; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.

    Returns:
      The record of the task.

    Source: Hendrycks et al., "Measuring Massive Multitask Language Understanding" (2021).
    """
    fields = {"fields": ("subject", "question", "answer"), "lists": ("choices",)}

    @functools.cache
    def subjects() -> dict[str, Exemplars]:
        rows = sources.configured_rows(exemplars, directory=directory, **fields)
        return few_shot.mmlu_exemplars(rows)

    def read(split: str) -> list[Question]:
        rows = sources.configured_rows(files[split], directory=directory, **fields)
        return [
            Question(
                row["subject"],
                few_shot.mmlu_question(row),
                few_shot.mmlu_answer(row),
                tuple(few_shot.LETTERS[: len(row["choices"])]),
            )
            for row in rows
        ]

    return _few_shot_task(
        name=name, vocabulary=vocabulary, splits=files, read=read,
        exemplars_of=_lookup(subjects, exemplars), shots=shots, scoring=scoring,
        input_length=input_length, max_examples=max_examples, metric_fns=metric_fns,
        answers={"answer_of": metrics.chosen_letter}, before=tuple,
    )  # fmt: skip


def bbh(
    files: Mapping[str, str],
    exemplars: str,
    name: str = "bbh",
    vocabulary: Any = None,
    directory: str | None = None,
    shots: int = 3,
    chain_of_thought: bool = False,
    scoring: str = "generation",
    input_length: int | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.answer_match,),
) -> TaskSpec:
    """Builds BIG-Bench Hard: 27 tasks in few-shot prompts.

    Rows hold `task`, `input` and `target`. Without a chain of thought the examples of the prompt
    keep their answers only.

    Args:
      exemplars: path of the folder of prompt files, one per task: `TASK.txt`.
      chain_of_thought: keep the reasoning of the examples, and ask the model to reason.
      scoring: `generation` to compare the stated answer of a completion, or `options` to score the
        possible options by log-likelihood, which leaves out the 4 of 27 tasks that ask for a
        number, a list or brackets.
      files, name, vocabulary, directory, shots, input_length, max_examples, metric_fns: as in
        `mmlu`.

    Returns:
      The record of the task.

    Raises:
      ValueError: options are to be scored after a chain of thought.

    Source: Suzgun et al., "Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them"
    (2022).
    """
    if chain_of_thought and scoring == "options":
        raise InvalidValue(f"{name}: options are scored without a chain of thought; choose one")

    def read(split: str) -> list[Question]:
        rows = sources.configured_rows(files[split], ("task", "input", "target"), directory)
        questions = [
            Question(
                row["task"],
                row["input"],
                ONE_LINE.fit(row["target"]),
                few_shot.bbh_options(row["task"], row["input"]),
            )
            for row in rows
        ]
        return [row for row in questions if row.options or scoring != "options"]

    def exemplars_of(task: str) -> Exemplars:
        if not re.fullmatch(r"\w+", task):  # the name becomes part of a path
            raise InvalidValue(
                f"task name {task!r} holds more than letters, digits and underscores"
            )
        path = os.path.join(sources.resolved(exemplars, directory), f"{task}.txt")
        return few_shot.bbh_exemplars(read_text(path), chain_of_thought)

    return _few_shot_task(
        name=name, vocabulary=vocabulary, splits=files, read=read, exemplars_of=exemplars_of,
        shots=shots, scoring=scoring, input_length=input_length, max_examples=max_examples,
        metric_fns=metric_fns, answers={"answer_of": metrics.stated_answer},
        before=lambda: ("Q:",),
    )  # fmt: skip


def mgsm(
    files: Mapping[str, Mapping[str, str]],
    exemplars: str,
    name: str = "mgsm",
    vocabulary: Any = None,
    directory: str | None = None,
    shots: int = 8,
    input_length: int | None = None,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.final_answer,),
) -> TaskSpec:
    """Builds MGSM: 250 problems of GSM8K in several languages, with native chains of thought.

    Files are TSV without a header: question, answer. Numbers are parsed by `gkd.metrics.numbers`:
    `3,5` is 3.5, whereas the published evaluation parses 35.

    Args:
      files: for each split, the path of the questions of each language.
      exemplars: path of the worked examples of all languages, see `few_shot.mgsm_exemplars`.
      name, vocabulary, directory, shots, input_length, max_examples, metric_fns: as in `mmlu`.

    Returns:
      The record of the task.

    Source: Shi et al., "Language Models are Multilingual Chain-of-Thought Reasoners" (2022).
    """

    def read(split: str) -> list[Question]:
        columns = ("question", "answer")
        form = TsvFormat(columns=columns)
        return [
            Question(language, row["question"], row["answer"])
            for language, file in files[split].items()
            for row in sources.configured_rows(file, columns, directory, form)
        ]

    @functools.cache
    def languages() -> dict[str, Exemplars]:
        text = read_text(sources.resolved(exemplars, directory))
        return few_shot.mgsm_exemplars(text)

    return _few_shot_task(
        name=name, vocabulary=vocabulary, splits=files, read=read,
        exemplars_of=_lookup(languages, exemplars), shots=shots, scoring="generation",
        input_length=input_length, max_examples=max_examples, metric_fns=metric_fns,
        answers=NUMBERS, before=lambda: tuple(each.before for each in languages().values()),
    )  # fmt: skip


def _lookup(groups: Callable[[], Mapping[str, Exemplars]], file: str) -> Callable[[str], Exemplars]:
    def exemplars_of(group: str) -> Exemplars:
        if group not in groups():
            raise InvalidValue(f"exemplars {file} have none of {group!r}; {', '.join(groups())}")
        return groups()[group]

    return exemplars_of


def _few_shot_task(
    *,
    name: str,
    vocabulary: Any,
    splits: Iterable[str],
    read: Callable[[str], list[Question]],
    exemplars_of: Callable[[str], Exemplars],
    shots: int,
    scoring: str,
    input_length: int | None,
    max_examples: int | None,
    metric_fns: Sequence[Callable[..., Any]],
    answers: Mapping[str, Callable[[str], Any]],
    before: Callable[[], tuple[str, ...]],
) -> TaskSpec:
    if scoring not in SCORINGS:
        raise InvalidValue(f"{name}: scoring={scoring!r} is not one of {', '.join(SCORINGS)}")
    check_max_examples(max_examples)
    vocabulary = vocabulary or vocabularies.t5()
    rule = rule_of(vocabulary)
    splits = tuple(splits)

    @functools.cache
    def exemplars(group: str) -> Exemplars:
        return few_shot.checked(exemplars_of(group), shots, group)

    @functools.cache
    def length_of(text: str) -> int:
        # Before a further text: at the end of all, line breaks may be fewer tokens.
        whole = rule.fit(f"{text}{few_shot.SEPARATOR}Q")
        rows = vocabularies.encode_texts(vocabulary, [whole, "Q"])
        return len(rows[0]) - len(rows[1])

    @functools.cache
    def questions(split: str) -> list[Question]:
        return [
            dataclasses.replace(
                row,
                input=few_shot.fitted_prompt(
                    exemplars(row.group), row.input, shots, input_length, length_of, rule.fit
                ),
            )
            for row in _spread(sources.chosen(read(split), max_examples))
        ]

    @functools.cache
    def by_input() -> dict[str, Question]:
        return {row.input: row for split in splits for row in questions(split)}

    def row_of(text: str) -> Question:
        if text not in by_input():
            raise InvalidValue(f"task {name} has no row {text[-60:]!r}")
        return by_input()[text]

    def choices(text: str, target: str) -> tuple[tuple[str, ...], int]:
        options = row_of(text).options
        return options, options.index(target) if target in options else -1

    return make_task(
        name,
        sources.rows_source(
            lambda split: [{"input": q.input, "target": q.target} for q in questions(split)],
            ("input", "target"),
            splits,
        ),
        prompts.text_to_text("input", "target", rule=rule),
        vocabulary,
        metric_fns,
        choices=choices if scoring == "options" else None,
        group_of=lambda text, _: row_of(text).group,
        completion_of=lambda text: few_shot.without_next_question(text, before()),
        **answers,
    )


def _spread(rows: list[Question]) -> list[Question]:
    """Spreads the rows of each group evenly, so that the first thousand are a fair sample."""
    groups: dict[str, list[Question]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    sizes = [len(group) for group in groups.values()]
    grouped = [row for group in groups.values() for row in group]
    return [grouped[i] for i in mixtures.interleaved(sizes, sizes)]
