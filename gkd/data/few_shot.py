"""Builds few-shot prompts of MMLU, BIG-Bench Hard and MGSM from rows, by pure functions.

Prompts have the line breaks of the publications; `fitted_prompt` puts them on one line if the
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
_BBH_ANSWER = re.compile(r".*So the answer is (.*?)\.?\s*$", re.DOTALL)  # the last such phrase
# Possible answers of tasks whose questions do not list options.
_BBH_CLOSED = {
    "boolean_expressions": ("True", "False"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One row of an evaluation.

    Attributes:
      group: its subject, task or language.
      input: the question alone at first, the whole prompt in the end.
      target: the correct answer.
      options: the answers to choose from, as the model would generate them; empty for free answers.
    """

    group: str
    input: str
    target: str
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exemplars:
    """The text before the questions of one group.

    Attributes:
      description: description of the task; may be empty.
      examples: worked examples, each a question with its answer.
      before, after: words before and after each question, as in the examples.
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
    """Joins the description, as many of the first `shots` examples as fit, and the question.

    Truncation would remove the end of a long prompt, which is the question itself. Therefore
    examples are dropped instead, the last first, as in Hendrycks et al.

    Args:
      exemplars: description and examples of the group.
      question: the question alone.
      shots: greatest number of examples.
      input_length: greatest length in tokens, including EOS; None for no limit.
      length_of: function of a text to its length in tokens, with its separator.
      fit: function that adapts white space to the vocabulary (`white_space.WhiteSpaceRule.fit`).

    Returns:
      The prompt.
    """
    sections = [exemplars.description.strip()] if exemplars.description.strip() else []
    examples = [example.strip() for example in exemplars.examples[:shots]]
    last = f"{exemplars.before} {question.strip()}\n{exemplars.after}".strip()
    if input_length is not None:
        room = input_length - 1 - sum(length_of(section) for section in [*sections, last])
        lengths = [length_of(example) for example in examples]
        while examples and sum(lengths[: len(examples)]) > room:
            examples.pop()
    return fit(SEPARATOR.join([*sections, *examples, last]))


_NEXT_OF_MMLU = re.compile(rf"{SEPARATOR}(?=[^\n]+\nA\. (?:.*\n)+?Answer:)")


def without_next_question(text: str, before: Sequence[str]) -> str:
    """Returns a completion up to the next question, which a base model may go on to write.

    Args:
      text: the completion of a few-shot prompt.
      before: words before a question in the examples, see `Exemplars`; none for MMLU's form.

    >>> without_next_question(" True\\n\\nQ: not ( True ) is\\nA: False", ["Q:"])
    ' True'
    """
    following = _NEXT_OF_MMLU
    if before:
        following = re.compile(rf"\s*(?:^|\n)\s*(?:{'|'.join(map(re.escape, before))})")
    return following.split(text, maxsplit=1)[0]


def checked(exemplars: Exemplars, shots: int, group: str) -> Exemplars:
    """Returns the exemplars of a group after checking their number.

    Args:
      exemplars: description and examples of the group.
      shots: number of examples per prompt.
      group: name of the group, for the message.

    Raises:
      ValueError: the group has fewer examples, or the number is negative.
    """
    if not 0 <= shots <= len(exemplars.examples):
        raise InvalidValue(
            f"shots={shots} is not in 0 … {len(exemplars.examples)}, the exemplars of {group}"
        )
    return exemplars


def mmlu_question(row: Mapping[str, Any]) -> str:
    """Formats a question with its lettered options as in Hendrycks et al. (2021).

    Args:
      row: row with `question` and `choices`.

    >>> mmlu_question({"question": "2 + 2?", "choices": ["3", "4"]})
    '2 + 2?\\nA. 3\\nB. 4'
    """
    options = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(row["choices"])]
    return "\n".join([row["question"].strip(), *options])


def mmlu_answer(row: Mapping[str, Any]) -> str:
    """Returns the letter of the correct option.

    Args:
      row: row with `choices` and `answer`, the index of the correct choice as text.

    Raises:
      ValueError: the answer is no index of a choice.
    """
    answer, choices = row["answer"].strip(), row["choices"]
    if not re.fullmatch(r"[0-9]+", answer) or int(answer) >= min(len(choices), len(LETTERS)):
        raise InvalidFile(f"MMLU answer {answer!r} is no index of the {len(choices)} choices")
    return LETTERS[int(answer)]


def mmlu_exemplars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Exemplars]:
    """Builds the description and examples of every subject of MMLU.

    Args:
      rows: rows of the development split: subject, question, choices, answer.

    Returns:
      Exemplars by subject.
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
    """Parses a prompt file of BIG-Bench Hard into description and worked examples.

    Args:
      text: content of the file: a canary line, `-----`, the description, and blocks of the form
        `Q: … A: Let's think …`.
      chain_of_thought: keep the reasoning; otherwise only the answer follows `A:`.

    Returns:
      The exemplars of the task.

    Raises:
      ValueError: an example does not end in `So the answer is …`.
    """
    body = text.partition("-----\n")[2] or text  # without the canary
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
    """Extracts the options of a question of BIG-Bench Hard: `(A)`, `(B)` …, or words.

    Args:
      task: name of the task.
      text: the question, with its `Options:` on separate lines.

    Returns:
      The options; empty if the question asks for a number, a list or brackets.

    >>> bbh_options("snarks", "Which is sarcastic?\\nOptions:\\n(A) This.\\n(B) That.")
    ('(A)', '(B)')
    """
    listed = text.rpartition("Options:")[2] if "Options:" in text else ""
    labels = re.findall(r"^(\([A-Z]\))", listed, re.MULTILINE)
    words = re.findall(r"^- *(.*\S)", listed, re.MULTILINE)
    return tuple(labels or words) or _BBH_CLOSED.get(task, ())


def mgsm_exemplars(text: str) -> dict[str, Exemplars]:
    """Parses MGSM's worked examples of each language, in that language (native CoT).

    Args:
      text: JSON: {language: [{"q": "Question: …", "a": "Step-by-Step Answer: …"}, …]}.

    Returns:
      Exemplars by language.

    Raises:
      ValueError: the text has another form.

    Source: Shi et al., "Language Models are Multilingual Chain-of-Thought Reasoners" (2022).
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
