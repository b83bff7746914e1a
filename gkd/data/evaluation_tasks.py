"""Evaluation-only tasks in several parts: few-shot MMLU, BIG-Bench Hard and MGSM."""

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
    """MMLU: multiple-choice questions of 57 subjects, in Hendrycks et al.'s few-shot prompt (2021).

    Rows hold `subject`, `question`, `choices` (a list of texts) and `answer` (the index of the
    right one, as text). The target is its letter.

    Args:
      files: path of each split's questions, see `sources.configured_rows`.
      exemplars: path of the development rows, whose first `shots` of a subject go before it.
      name: the task's name in seqio's registry.
      vocabulary: a seqio vocabulary; by default T5's.
      directory: where relative paths start, by default the environment's GKD_DATA.
      shots: worked examples before a question.
      scoring: `options`: the letters are scored by log-likelihood (`TaskSpec.choices`);
        `generation`: the model writes, and the letter is looked for.
      input_length: tokens that a prompt may have; a longer one has fewer examples. None: any.
      max_examples: how many questions of each split, spread over all; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.
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
        answers={"answer_of": metrics.chosen_letter},
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
    """BIG-Bench Hard: 27 tasks in the few-shot prompts of Suzgun et al. (2022).

    Rows hold `task`, `input` and `target`. Without a chain of thought the prompt's examples keep
    their answers only.

    Args:
      exemplars: path of the folder of prompt files, one a task: `TASK.txt`.
      chain_of_thought: whether the examples reason, and the model is asked to.
      scoring: `generation`: the model writes, and what it states as its answer is compared;
        `options`: log-likelihood over the options that questions list or are closed to. It leaves
        out the tasks that ask for a number, a list or brackets (4 of the 27).
      Others: as `mmlu`'s.
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
        if not re.fullmatch(r"\w+", task):  # it becomes a part of a path
            raise InvalidValue(
                f"task name {task!r} holds more than letters, digits and underscores"
            )
        path = os.path.join(sources.resolved(exemplars, directory), f"{task}.txt")
        return few_shot.bbh_exemplars(sources.read_text(path), chain_of_thought)

    return _few_shot_task(
        name=name, vocabulary=vocabulary, splits=files, read=read, exemplars_of=exemplars_of,
        shots=shots, scoring=scoring, input_length=input_length, max_examples=max_examples,
        metric_fns=metric_fns, answers={"answer_of": metrics.stated_answer},
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
    """MGSM: 250 problems of GSM8K in several languages, after chains of thought in the language.

    Shi et al., "Language Models are Multilingual Chain-of-Thought Reasoners" (2022). Files are TSV
    without a header: question, answer. Numbers are read by `gkd.metrics.numbers`: `3,5` is
    3.5, where the published evaluation reads 35.

    Args:
      files: for each split, path of each language's questions.
      exemplars: path of the languages' worked examples, see `few_shot.mgsm_exemplars`.
      Others: as `mmlu`'s.
    """

    def read(split: str) -> list[Question]:
        columns = ("question", "answer")
        return [
            Question(language, row["question"], row["answer"])
            for language, file in files[split].items()
            for row in sources.configured_rows(file, columns, directory, columns)
        ]

    @functools.cache
    def languages() -> dict[str, Exemplars]:
        text = sources.read_text(sources.resolved(exemplars, directory))
        return few_shot.mgsm_exemplars(text)

    return _few_shot_task(
        name=name, vocabulary=vocabulary, splits=files, read=read,
        exemplars_of=_lookup(languages, exemplars), shots=shots, scoring="generation",
        input_length=input_length, max_examples=max_examples, metric_fns=metric_fns,
        answers=NUMBERS,
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
        separated = rule.fit(f"{text}{few_shot.SEPARATOR}.")[:-1]  # its own separator, not an end
        return len(vocabularies.encode_texts(vocabulary, [separated])[0])

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
        **answers,
    )


def _spread(rows: list[Question]) -> list[Question]:
    """The rows with each group spread evenly over them: the first thousand are a fair sample."""
    groups: dict[str, list[Question]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    sizes = [len(group) for group in groups.values()]
    laid = [row for group in groups.values() for row in group]
    return [laid[i] for i in mixtures.interleaved(sizes, sizes)]
