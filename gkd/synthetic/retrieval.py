"""Generates questions about one of many statements, with a short context that holds the answer.

`Tom buys 42 pens, Eva loses 17 cups, Max finds 8 keys. Eva loses cups =` → `#### 17`
the same question on a short context: `Eva loses 17 cups. Eva loses cups =`

A model that answers on few statements can teach itself to answer on many: its own distribution on
the short context is the teacher's. No two splits share a context.
"""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

from gkd.errors import InvalidValue
from gkd.synthetic.arithmetic import GAINS, ITEMS, LOSSES, NAMES, SPLITS

KEYS = tuple(
    (name, verb, item) for name in NAMES for verb in (*GAINS, *LOSSES) for item in ITEMS
)  # 288


class Question(NamedTuple):
    """A question: with the whole context, with the short one, and its answer."""

    input: str
    evidence: str
    target: str


def questions(
    split: str, rows: int, seed: int = 0, context: int = 32, evidence: int = 4, digits: int = 2
) -> list[Question]:
    """Generates questions of one split; fewer rows of the same seed are a prefix of more.

    Args:
      split: train, validation or test.
      rows: number of questions.
      seed: seed of the questions; splits stay disjoint even across seeds.
      context: statements of the whole context, no two about the same; 1 to 288.
      evidence: statements of the short context: neighbours in the whole one, one of them with the
        answer; at most `context`.
      digits: the numbers are drawn from 0 … 10^digits − 1.

    Returns:
      A list of `rows` questions.

    Raises:
      ValueError: the split is unknown, or a size is out of range.

    >>> question = questions("train", 1, context=3, evidence=1)[0]
    >>> print(question.input, question.evidence, question.target, sep="\\n")
    Eva drops 17 books, Eva gives 64 pens, Ben gets 27 books. Eva gives pens =
    Eva gives 64 pens. Eva gives pens =
    #### 64
    """
    _check(split, rows, context, evidence, digits)
    source = random.Random(f"retrieval {seed} {split}")
    made: list[Question] = []
    while len(made) < rows:
        question = _drawn(source, context, evidence, digits)
        if split_of(question.input) == split:
            made.append(question)
    return made


def split_of(text: str) -> str:
    """Returns the only split that may hold a question with this context.

    Args:
      text: the question with its whole context.
    """
    context = text.partition(". ")[0]
    bucket = int.from_bytes(hashlib.sha256(context.encode()).digest()[:8], "big") % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def _check(split: str, rows: int, context: int, evidence: int, digits: int) -> None:
    if split not in SPLITS:
        raise InvalidValue(f"retrieval has no split {split!r}; it has {', '.join(SPLITS)}")
    for name, value, most in (
        ("rows", rows, None), ("context", context, len(KEYS)), ("evidence", evidence, context),
        ("digits", digits, None),
    ):  # fmt: skip
        if value < 1 or (most is not None and value > most):
            bound = "at least 1" if most is None else f"between 1 and {most}"
            raise InvalidValue(f"retrieval: {name}={value} must be {bound}")


def _below(source: random.Random, bound: int) -> int:
    # Only `random()` is used: Python guarantees its values for a seed, not those of randrange.
    return int(source.random() * bound)


def _drawn(source: random.Random, context: int, evidence: int, digits: int) -> Question:
    keys = list(KEYS)
    for place in range(context):  # the first steps of a shuffle
        other = place + _below(source, len(keys) - place)
        keys[place], keys[other] = keys[other], keys[place]
    numbers = [_below(source, 10**digits) for _ in range(context)]
    statements = [
        f"{name} {verb} {number} {item}"
        for (name, verb, item), number in zip(keys, numbers, strict=False)
    ]
    asked = _below(source, context)
    first = asked - _below(source, evidence)  # of the short context, moved inside of the whole one
    first = min(max(first, 0), context - evidence)
    question = f"{' '.join(keys[asked])} ="
    whole, short = (
        f"{', '.join(part)}. {question}"
        for part in (statements, statements[first : first + evidence])
    )
    return Question(whole, short, f"#### {numbers[asked]}")
