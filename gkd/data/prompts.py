"""Builds input and target texts from raw rows: prefixes, chain-of-thought prompts, templates.

And gives a task's prompts the form of a chat.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.data.sources import REFERENCES
from gkd.data.task_spec import TaskSpec, make_task
from gkd.errors import InvalidValue
from gkd.vocabularies.chat_templates import ChatFormat, chat_template_of
from gkd.vocabularies.placeholder import PlaceholderVocabulary
from gkd.vocabularies.tensorflow_host import tf
from gkd.vocabularies.white_space import ONE_LINE, WhiteSpaceRule

# Our own four problems, in GSM8K's manner: (question, solution, answer).
EXEMPLARS = (
    (
        "A shelf holds 3 boxes with 8 pens in each box. Mia takes 5 pens. How many pens are left?",
        "There are 3 * 8 = 24 pens. After Mia takes 5, there are 24 - 5 = 19 pens left.",
        "19",
    ),
    (
        "A ticket costs $7 and a drink costs $2. How many dollars do 4 friends pay if each of them "
        "buys one ticket and one drink?",
        "One friend pays 7 + 2 = 9 dollars. Together they pay 4 * 9 = 36 dollars.",
        "36",
    ),
    (
        "Leo reads 12 pages on Monday and half as many on Tuesday. His book has 60 pages. How many "
        "pages remain?",
        "On Tuesday he reads 12 / 2 = 6 pages. On both days he reads 12 + 6 = 18 pages. "
        "So 60 - 18 = 42 pages remain.",
        "42",
    ),
    (
        "A bus carries 40 people. At a stop 15% of them get off and 9 others get on. How many "
        "people are on the bus then?",
        "40 * 15 / 100 = 6 people get off. Then 40 - 6 = 34 people are left. "
        "With the others there are 34 + 9 = 43 people.",
        "43",
    ),
)
_THINK = "A: Let's think step by step."


def without_calculator_notes(text: Any) -> Any:
    """Removes GSM8K's `<<48/2=24>>` notes.

    Args:
      text: string tensor of any shape.
    """
    return tf.strings.regex_replace(text, r"<<[^<>]*>>", "")


def _row(example: Any, prompt: Any, input_text: Any, target_text: Any) -> dict[str, Any]:
    # The prompt is never empty, so emptiness is determined from the texts before it is added.
    empty = is_empty(input_text) | is_empty(target_text)
    references = {REFERENCES: example[REFERENCES]} if REFERENCES in example else {}
    return {"inputs": prompt, "targets": target_text, "empty": empty, **references}


def is_empty(text: Any) -> Any:
    """Tests for texts of white space only, under every vocabulary.

    Args:
      text: string tensor of any shape.

    Returns:
      A boolean tensor of the same shape.
    """
    return tf.equal(tf.strings.length(ONE_LINE.fit_tensor(text)), 0)


def text_to_text(
    input_field: str, target_field: str, prefix: str = "", rule: WhiteSpaceRule = ONE_LINE
) -> Callable[[Any], Any]:
    """Builds the preprocessor prefix + input → target, for one row or a batch of rows.

    Args:
      input_field: name of the field of the input text.
      target_field: name of the field of the target text.
      prefix: text before every input, e.g. `summarize: `.
      rule: treatment of line breaks and indentation, see `white_space.rule_of`.

    Returns:
      A function of a row of string tensors to {inputs, targets, empty}, and `REFERENCES` where the
      row has several.
    """

    def row(example: Any) -> dict[str, Any]:
        source, target = (rule.fit_tensor(example[name]) for name in (input_field, target_field))
        return _row(example, prefix + source, source, target)

    return row


def chain_of_thought(
    question_field: str,
    answer_field: str,
    rationale_field: str | None = None,
    shots: int = 4,
    rule: WhiteSpaceRule = ONE_LINE,
) -> Callable[[Any], Any]:
    """Builds the preprocessor worked examples + question → solution and `#### N`.

    Args:
      question_field: name of the field of the question.
      answer_field: name of the field of the solution that ends in `#### N` or, with a rationale,
        of the answer alone.
      rationale_field: name of the field of the solution, if the answer is a separate field.
      shots: number of exemplars before the question, 0 … 4.
      rule: treatment of line breaks and indentation, see `white_space.rule_of`.

    Returns:
      A function of a row, or batch, of string tensors to {inputs, targets, empty}.

    Raises:
      ValueError: shots is not in 0 … 4.

    Source: Wei et al., "Chain-of-Thought Prompting Elicits Reasoning in Large Language Models"
    (2022); the zero-shot phrase is that of Kojima et al. (2022).
    """
    if not 0 <= shots <= len(EXEMPLARS):
        raise InvalidValue(f"gsm8k_cot: shots={shots} is not in 0 … {len(EXEMPLARS)}")
    before = "".join(
        f"Q: {question} {_THINK} {solution} #### {answer} "
        for question, solution, answer in EXEMPLARS[:shots]
    )

    def row(example: Any) -> dict[str, Any]:
        question = rule.fit_tensor(example[question_field])
        answer = rule.fit_tensor(without_calculator_notes(example[answer_field]))
        if rationale_field is not None:
            rationale = rule.fit_tensor(without_calculator_notes(example[rationale_field]))
            empty = is_empty(rationale) | is_empty(answer)
            answer = tf.where(empty, "", tf.strings.join([rationale, " #### ", answer]))
        prompt = tf.strings.join([before, "Q: ", question, " ", _THINK])
        return _row(example, prompt, question, answer)

    return row


def template_fields(templates: Sequence[Sequence[str]]) -> list[str]:
    """Lists the fields that templates name in braces, each once, in order of appearance.

    Args:
      templates: pairs of an input and a target.

    Returns:
      Names of the fields.

    Raises:
      ValueError: an entry is no pair, no field is named, or a text has a bare brace.

    >>> template_fields([("Q: {question} {context}", "{answer}"), ("{question}?", "{answer}")])
    ['question', 'context', 'answer']
    """
    fields: dict[str, None] = {}
    for pair in templates:
        if isinstance(pair, str) or len(pair) != 2:
            raise InvalidValue(f"template {pair!r} is not a pair of an input and a target")
        for text in pair:
            fields.update(dict.fromkeys(field for _, field in _pieces(text) if field is not None))
    if not fields:
        raise InvalidValue("templates name no field: write fields in braces, e.g. 'Q: {question}'")
    return list(fields)


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """Splits a template into literal texts, each followed by the name of a field or None."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidValue(f"template {template!r}: {error}") from error
    for _, field, form, conversion in parsed:
        if field is not None and (not field.isidentifier() or form or conversion):
            raise InvalidValue(f"template {template!r}: {field!r} is not the name of a field")
    return [(words, field) for words, field, _, _ in parsed]


def instructions(
    templates: Sequence[Sequence[str]], rule: WhiteSpaceRule = ONE_LINE
) -> Callable[[Any], Any]:
    """Builds the preprocessor that fills one of several templates with each row.

    The template is chosen by a hash of the row's text, so that it is the same for every order of
    rows and in every epoch. A row with an empty field is an empty example.

    Args:
      templates: pairs of an input and a target with fields in braces, e.g.
        ("Q: {question}", "{answer}").
      rule: treatment of line breaks and indentation, see `white_space.rule_of`.

    Returns:
      A function of a row, or batch, of string tensors to {inputs, targets, empty}.

    Raises:
      ValueError: an entry is no pair, no field is named, or a text has a bare brace.
    """
    fields = template_fields(templates)
    pieces = [[_pieces(text) for text in pair] for pair in templates]

    def row(example: Any) -> dict[str, Any]:
        values = {field: rule.fit_tensor(example[field]) for field in fields}
        empty = tf.reduce_any(tf.stack([is_empty(value) for value in values.values()]), axis=0)
        words = [ONE_LINE.fit_tensor(value) for value in values.values()]
        template = tf.strings.to_hash_bucket_fast(
            tf.strings.join(words, separator=" "), len(templates)
        )
        texts = [[_filled(text, values, rule) for text in pair] for pair in pieces]
        inputs, targets = texts[0]
        for i, (other_input, other_target) in enumerate(texts[1:], start=1):
            inputs = tf.where(tf.equal(template, i), other_input, inputs)
            targets = tf.where(tf.equal(template, i), other_target, targets)
        return {"inputs": inputs, "targets": targets, "empty": empty}

    return row


def fill_template(template: str, row: Mapping[str, Any]) -> Any:
    """Puts the texts of rows into the braces of a template; white space stays as it is.

    Args:
      template: text with names of the rows' texts in braces.
      row: string tensors [rows] by name.

    Returns:
      A string tensor [rows].
    """
    pieces = _pieces(template)
    return tf.strings.join(
        [part for words, field in pieces for part in (words, *([row[field]] if field else []))]
    )


def _filled(
    pieces: list[tuple[str, str | None]], values: dict[str, Any], rule: WhiteSpaceRule
) -> Any:
    texts = [text for words, field in pieces for text in (words, values.get(field, ""))]
    nothing = tf.zeros_like(next(iter(values.values())))  # gives a template without fields rows too
    text = tf.strings.join([*texts, nothing])
    return tf.strings.strip(text) if rule.one_line else text


def formatted(
    task: TaskSpec,
    prompt: str = "text",
    system: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> TaskSpec:
    """Gives the prompts of a task their form: plain text, or the user's message of a chat.

    Metrics, groups and rewards by text see the texts as they were; models read the chat through the
    start of the assistant's turn, for the student and, where it has its own, the teacher's prompt.

    Args:
      task: the task.
      prompt: 'text', or 'chat' for the chat template of the vocabulary's folder.
      system: text of a system message; None leaves it to the template.
      options: variables of the template, e.g. enable_thinking.

    Returns:
      The task.

    Raises:
      InvalidValue: another prompt, or a system text or options without a chat.
      MissingFile: the vocabulary has no chat template.
      InvalidFile: the template fails.
    """
    if prompt not in ("text", "chat"):
        raise InvalidValue(f"PROMPT is {prompt!r}: use 'text' or 'chat'")
    if prompt == "text":
        if system is not None or options:
            raise InvalidValue("SYSTEM and CHAT_OPTIONS belong to chats: set PROMPT='chat' too")
        return task
    if isinstance(task.vocabulary, PlaceholderVocabulary):  # a plan, of lengths alone
        return task
    chat = ChatFormat(chat_template_of(task.vocabulary), system, tuple((options or {}).items()))
    chat.render(["a"])
    texts, metric_fns = task.texts, task.task.metric_fns
    made = make_task(
        task.name, task.task.source, texts, task.vocabulary, metric_fns, task.features, chat=chat
    )
    return dataclasses.replace(task, task=made.task, chat=chat)
