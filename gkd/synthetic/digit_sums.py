"""Generates numbers to be written as sums of digits: every input has many right outputs.

`= 17 ; 4` → `3 9 1 4`, or any other four digits whose sum is 17.

A model can be right in many ways, and whether it is right can be checked exactly: a task for what
divergences do with modes.
"""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

from gkd.errors import InvalidValue
from gkd.synthetic.arithmetic import SPLITS

_DRAWS_WITHOUT_A_NEW_ROW = 20_000


class DigitSum(NamedTuple):
    """A row: the sum and the number of digits as text, and one right output."""

    input: str
    target: str


def split_of(target: str) -> str:
    """Returns the only split that may hold a row with this output.

    Args:
      target: the digits, separated by spaces.
    """
    bucket = int.from_bytes(hashlib.sha256(target.encode()).digest()[:8], "big") % 10
    return {0: "validation", 1: "test"}.get(bucket, "train")


def digit_sums(split: str, rows: int, seed: int = 0, digits: int = 4) -> list[DigitSum]:
    """Draws rows of one split with digits from 0 to 9, each as likely as another.

    Args:
      split: train, validation or test.
      rows: number of rows; no two have the same output.
      seed: seed of the rows; splits stay disjoint even across seeds.
      digits: digits of an output.

    Returns:
      The rows; fewer rows of the same seed are a prefix of more.

    Raises:
      InvalidValue: the split is unknown, a size is below 1, or too few outputs exist.

    >>> digit_sums("train", 1)
    [DigitSum(input='= 17 ; 4', target='8 3 2 4')]
    """
    if split not in SPLITS:
        raise InvalidValue(f"digit_sums has no split {split!r}; it has {', '.join(SPLITS)}")
    for name, value in (("rows", rows), ("digits", digits)):
        if value < 1:
            raise InvalidValue(f"digit_sums: {name}={value} must be at least 1")
    source = random.Random(f"digit sums {seed} {split}")
    made: dict[str, DigitSum] = {}
    misses = 0
    while len(made) < rows:
        # Only `random()` is used: Python guarantees its values for a seed, not those of randrange.
        drawn = [int(source.random() * 10) for _ in range(digits)]
        target = " ".join(map(str, drawn))
        if target in made or split_of(target) != split:
            misses += 1
            if misses > _DRAWS_WITHOUT_A_NEW_ROW:
                raise InvalidValue(
                    f"digit_sums: only {len(made)} different {split} rows of {digits} digits "
                    f"found, {rows} asked for: ask for fewer rows or more digits"
                )
            continue
        misses = 0
        made[target] = DigitSum(f"= {sum(drawn)} ; {digits}", target)
    return list(made.values())
