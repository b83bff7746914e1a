"""Turn raw rows into input and target text: prefixes, chain-of-thought prompts, T5-safe text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gkd.data.tensorflow_host import tf

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


def one_line(text: Any) -> Any:
    """A text tensor without the characters T5's vocabulary lacks: newlines and tabs become spaces.

    Args:
      text: string tensor of any shape.

    Returns:
      The same shape, runs of white space replaced by one space, none at the ends.
    """
    return tf.strings.strip(tf.strings.regex_replace(text, r"\s+", " "))


def without_calculator_notes(text: Any) -> Any:
    """Remove GSM8K's `<<48/2=24>>` notes.

    Args:
      text: string tensor of any shape.
    """
    return tf.strings.regex_replace(text, r"<<[^<>]*>>", "")


def _row(prompt: Any, input_text: Any, target_text: Any) -> dict[str, Any]:
    # The prompt is never empty, so an example's emptiness has to be noted before it is added.
    empty = tf.equal(tf.strings.length(input_text), 0) | tf.equal(tf.strings.length(target_text), 0)
    return {"inputs": prompt, "targets": target_text, "empty": empty}


def text_to_text(input_field: str, target_field: str, prefix: str = "") -> Callable[[Any], Any]:
    """Texts of one row, or of a batch of rows: prefix + input → target.

    Args:
      input_field: the row's field that holds the input text.
      target_field: the row's field that holds the target text.
      prefix: put before every input, e.g. `summarize: `.

    Returns:
      A function of a row of string tensors to {inputs, targets, empty}.
    """

    def row(example: Any) -> dict[str, Any]:
        source, target = one_line(example[input_field]), one_line(example[target_field])
        return _row(prefix + source, source, target)

    return row


def chain_of_thought(
    question_field: str, answer_field: str, rationale_field: str | None = None, shots: int = 4
) -> Callable[[Any], Any]:
    """Texts of one row, or of a batch: worked examples + question → solution and `#### N`.

    Args:
      question_field: the row's field that holds the question.
      answer_field: the solution that ends in `#### N`, or, with a rationale, only the answer.
      rationale_field: the row's field that holds the solution where the answer stands apart.
      shots: how many of the four exemplars go before the question.

    Returns:
      A function of a row of string tensors to {inputs, targets, empty}.

    Raises:
      ValueError: if shots is not in 0 … 4.
    """
    if not 0 <= shots <= len(EXEMPLARS):
        raise ValueError(f"gsm8k_cot: shots={shots} is not in 0 … {len(EXEMPLARS)}")
    before = "".join(
        f"Q: {question} {_THINK} {solution} #### {answer} "
        for question, solution, answer in EXEMPLARS[:shots]
    )

    def row(example: Any) -> dict[str, Any]:
        question = one_line(example[question_field])
        answer = one_line(without_calculator_notes(example[answer_field]))
        if rationale_field is not None:
            rationale = one_line(without_calculator_notes(example[rationale_field]))
            empty = tf.equal(tf.strings.length(rationale), 0) | tf.equal(
                tf.strings.length(answer), 0
            )
            answer = tf.where(empty, "", tf.strings.join([rationale, " #### ", answer]))
        prompt = tf.strings.join([before, "Q: ", question, " ", _THINK])
        return _row(prompt, question, answer)

    return row
