"""Few-shot questions of MMLU, BIG-Bench Hard and MGSM: pure functions of rows to prompts.

Prompts have the line breaks of the publications; `fitted_prompt` puts them on one line where the
vocabulary has no line breaks.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile, InvalidValue

SEPARATOR = "\n\n"  # between description, examples and question
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_THINK = "Let's think step by step."
_BBH_ANSWER = re.compile(r".*So the answer is (.*?)\.?\s*$", re.DOTALL)  # the last such words
# What these tasks' questions ask for without listing it as options.
_BBH_CLOSED = {
    "boolean_expressions": ("True", "False"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One row of an evaluation.

    Attributes:
      group: the subject, task or language it belongs to.
      input: the question alone, then the whole prompt.
      target: the right answer.
      options: the answers to choose from, as the model would write them; none: it writes freely.
    """

    group: str
    input: str
    target: str
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exemplars:
    """What stands before the questions of one group.

    Attributes:
      description: the task in words, may be empty.
      examples: worked examples, each a question with its answer.
      before, after: the words around a question that the examples use too.
    """

    description: str
    examples: tuple[str, ...]
    before: str = ""
    after: str = ""


def fitted_prompt(
    exemplars: Exemplars,
    question: str,
    shots: int,
    input_length: int | None,
    length_of: Callable[[str], int],
    fit: Callable[[str], str],
) -> str:
    """Description, as many of the first `shots` examples as fit, and the question.

    A prompt that is too long would lose its end, the question itself: so it loses examples instead,
    the last first, as Hendrycks et al. do.

    Args:
      exemplars: what stands before the question.
      question: the question alone.
      shots: examples wanted.
      input_length: tokens that fit, EOS included; None: any number.
      length_of: tokens of a text and of what separates it from the next.
      fit: what the vocabulary can represent of a text (`white_space.WhiteSpaceRule.fit`).
    """
    parts = [exemplars.description.strip()] if exemplars.description.strip() else []
    examples = [example.strip() for example in exemplars.examples[:shots]]
    last = f"{exemplars.before} {question.strip()}\n{exemplars.after}".strip()
    if input_length is not None:
        room = input_length - 1 - sum(length_of(part) for part in [*parts, last])
        lengths = [length_of(example) for example in examples]
        while examples and sum(lengths[: len(examples)]) > room:
            examples.pop()
    return fit(SEPARATOR.join([*parts, *examples, last]))


def checked(exemplars: Exemplars, shots: int, group: str) -> Exemplars:
    """The exemplars of a group, if there are as many as wanted.

    Raises:
      ValueError: if there are fewer, or the number is negative.
    """
    if not 0 <= shots <= len(exemplars.examples):
        raise InvalidValue(
            f"shots={shots} is not in 0 … {len(exemplars.examples)}, the exemplars of {group}"
        )
    return exemplars


def mmlu_question(row: Mapping[str, Any]) -> str:
    """A question with its lettered options, as Hendrycks et al. write it (2021).

    Args:
      row: with `question` and `choices`.
    """
    options = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(row["choices"])]
    return "\n".join([row["question"].strip(), *options])


def mmlu_answer(row: Mapping[str, Any]) -> str:
    """The right option's letter.

    Args:
      row: with `choices` and `answer`, the index of the right one as text.

    Raises:
      ValueError: if the answer names no choice.
    """
    answer, choices = row["answer"].strip(), row["choices"]
    if not re.fullmatch(r"[0-9]+", answer) or int(answer) >= min(len(choices), len(LETTERS)):
        raise InvalidFile(f"MMLU answer {answer!r} is no index of the {len(choices)} choices")
    return LETTERS[int(answer)]


def mmlu_exemplars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Exemplars]:
    """What stands before each subject's questions.

    Args:
      rows: the development rows: subject, question, choices, answer.
    """
    subjects: dict[str, list[str]] = {}
    for row in rows:
        example = f"{mmlu_question(row)}\nAnswer: {mmlu_answer(row)}"
        subjects.setdefault(row["subject"], []).append(example)
    return {
        subject: Exemplars(
            "The following are multiple choice questions (with answers) about "
            f"{subject.replace('_', ' ')}.",
            tuple(examples),
            after="Answer:",
        )
        for subject, examples in subjects.items()
    }


def bbh_exemplars(text: str, chain_of_thought: bool) -> Exemplars:
    """The description and the worked examples of one of BIG-Bench Hard's prompt files.

    Args:
      text: the file: a canary line, `-----`, the description, `Q: … A: Let's think …` blocks.
      chain_of_thought: whether to keep the reasoning; without it only the answer stands after `A:`.

    Raises:
      ValueError: if an example does not end in `So the answer is …`.
    """
    body = text.partition("-----\n")[2] or text  # the canary is no part of the prompt
    description, *blocks = re.split(r"(?:^|\n)Q: ", body)
    examples = []
    for block in blocks:
        question, _, reasoning = block.partition("\nA: ")
        answer = _BBH_ANSWER.search(reasoning)
        if answer is None:
            raise InvalidFile(f"exemplar {question[:40]!r} has no `So the answer is` at its end")
        answer = reasoning if chain_of_thought else answer.group(1)
        examples.append(f"Q: {question}\nA: {answer}")
    after = f"A: {_THINK}" if chain_of_thought else "A:"
    return Exemplars(description, tuple(examples), "Q:", after)


def bbh_options(task: str, text: str) -> tuple[str, ...]:
    """The answers that a question of BIG-Bench Hard offers: `(A)`, `(B)` …, or words.

    Args:
      task: the task's name.
      text: the question, with its `Options:` on lines of their own.

    Returns:
      The answers; none where the question asks for a number, a list or brackets.
    """
    listed = text.rpartition("Options:")[2] if "Options:" in text else ""
    labels = re.findall(r"^(\([A-Z]\))", listed, re.MULTILINE)
    words = re.findall(r"^- *(.*\S)", listed, re.MULTILINE)
    return tuple(labels or words) or _BBH_CLOSED.get(task, ())


def mgsm_exemplars(text: str) -> dict[str, Exemplars]:
    """MGSM's worked examples of each language, in that language (Shi et al., 2022: native CoT).

    Args:
      text: JSON: {language: [{"q": "Question: …", "a": "Step-by-Step Answer: …"}, …]}.

    Raises:
      ValueError: if it is something else.
    """
    try:
        languages = {}
        for language, pairs in json.loads(text).items():
            before, after = (pairs[0][name].partition(":")[0] + ":" for name in ("q", "a"))
            examples = tuple(f"{pair['q']}\n{pair['a']}" for pair in pairs)
            languages[language] = Exemplars("", examples, before, after)
        return languages
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise InvalidFile(f"not MGSM's exemplars ({type(error).__name__}: {error})") from error
