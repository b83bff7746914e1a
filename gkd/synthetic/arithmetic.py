"""Generates multi-step arithmetic word problems with worked solutions from a seed.

`Tom has 7 coins, finds 4, loses 2.` → `7 + 4 = 11 ; 11 - 2 = 9 #### 9` (equations)
                                     → `11 9 #### 9` (totals)

The split of a problem is a hash of its numbers, so that no two splits share a problem's numbers
for any seeds and sizes.
"""

from __future__ import annotations

import hashlib
import random
from typing import NamedTuple

from gkd.errors import InvalidValue

NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Zoe")
ITEMS = ("coins", "cards", "books", "pens", "cups", "keys")
GAINS = ("finds", "wins", "buys", "gets")
LOSSES = ("loses", "sells", "gives", "drops")
SOLUTIONS = ("equations", "totals")
SPLITS = ("train", "validation", "test")

# Of ten hash values, 0 belongs to validation, 1 to test, the others to train.
_BUCKETS = 10
_DRAWS_WITHOUT_A_NEW_PROBLEM = 20_000


class Problem(NamedTuple):
    """A word problem: its text, its worked solution, and its signed numbers."""

    input: str
    target: str
    numbers: tuple[int, ...]


def split_of(numbers: tuple[int, ...]) -> str:
    """Returns the only split that may hold a problem with these signed numbers.

    Args:
      numbers: the initial amount, then the signed amount of each step.
    """
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % _BUCKETS
    return {0: "validation", 1: "test"}.get(bucket, "train")


def problems(
    split: str,
    rows: int,
    seed: int = 0,
    steps: int = 5,
    minimum_steps: int | None = None,
    digits: int = 1,
    solution: str = "equations",
) -> list[Problem]:
    """Generates distinct problems of one split; fewer rows of the same seed are a prefix of more.

    Args:
      split: train, validation or test.
      rows: number of problems.
      seed: seed of the problems; splits stay disjoint even across seeds.
      steps: number of additions and subtractions per problem.
      minimum_steps: if given, the number of steps is drawn from minimum_steps … steps.
      digits: amounts are drawn from 1 … 10^digits − 1. Totals are never negative.
      solution: `equations` writes each step out, `totals` only the running totals.

    Returns:
      A list of `rows` problems, no two with the same numbers.

    Raises:
      ValueError: the split or solution is unknown, a size is below 1, or too few problems exist.

    >>> problem = problems("train", 1, steps=2)[0]
    >>> problem.input, problem.target
    ('Ann has 5 pens, sells 4, gets 9.', '5 - 4 = 1 ; 1 + 9 = 10 #### 10')
    """
    _check(split, rows, steps, minimum_steps, digits, solution)
    shortest = steps if minimum_steps is None else minimum_steps
    source = random.Random(f"arithmetic {seed} {split}")
    seen: set[tuple[int, ...]] = set()
    made: list[Problem] = []
    misses = 0
    while len(made) < rows:
        numbers = _drawn(source, shortest, steps, digits)
        if numbers in seen or split_of(numbers) != split:
            misses += 1
            if misses > _DRAWS_WITHOUT_A_NEW_PROBLEM:
                raise InvalidValue(
                    f"arithmetic: only {len(made)} distinct {split} problems found with steps="
                    f"{steps}, digits={digits}, {rows} asked for: ask for fewer rows or more steps"
                )
            continue
        misses = 0
        seen.add(numbers)
        made.append(_written_out(source, numbers, solution))
    return made


def _check(
    split: str, rows: int, steps: int, minimum_steps: int | None, digits: int, solution: str
) -> None:
    if split not in SPLITS:
        raise InvalidValue(f"arithmetic has no split {split!r}; it has {', '.join(SPLITS)}")
    if solution not in SOLUTIONS:
        raise InvalidValue(
            f"arithmetic: solution={solution!r} is not one of {', '.join(SOLUTIONS)}"
        )
    for name, value in (("rows", rows), ("steps", steps), ("digits", digits)):
        if value < 1:
            raise InvalidValue(f"arithmetic: {name}={value} must be at least 1")
    if minimum_steps is not None and not 1 <= minimum_steps <= steps:
        raise InvalidValue(f"arithmetic: minimum_steps={minimum_steps} is not in 1 … steps={steps}")


def _below(source: random.Random, bound: int) -> int:
    # Only `random()` is used: Python guarantees its values for a seed, not those of randrange.
    return int(source.random() * bound)


def _drawn(source: random.Random, shortest: int, steps: int, digits: int) -> tuple[int, ...]:
    """Draws the initial amount and the signed amounts of a problem of any split."""
    total = 1 + _below(source, 10**digits - 1)
    numbers = [total]
    for _ in range(shortest + _below(source, steps - shortest + 1)):
        amount = 1 + _below(source, 10**digits - 1)
        gain = source.random() < 0.5 or amount > total
        numbers.append(amount if gain else -amount)
        total += numbers[-1]
    return tuple(numbers)


def _written_out(source: random.Random, numbers: tuple[int, ...], solution: str) -> Problem:
    """Writes the numbers as a story with its worked solution."""
    total = numbers[0]
    name, item = NAMES[_below(source, len(NAMES))], ITEMS[_below(source, len(ITEMS))]
    story = [f"{name} has {total} {item}"]
    totals, equations = [], []
    for signed in numbers[1:]:
        verbs, sign = (GAINS, "+") if signed > 0 else (LOSSES, "-")
        story.append(f"{verbs[_below(source, len(verbs))]} {abs(signed)}")
        equations.append(f"{total} {sign} {abs(signed)} = {total + signed}")
        total += signed
        totals.append(str(total))
    worked = " ; ".join(equations) if solution == "equations" else " ".join(totals)
    return Problem(", ".join(story) + ".", f"{worked} #### {total}", numbers)


def words() -> tuple[str, ...]:
    """Lists every word and sign that a problem or its solution can hold, apart from digits."""
    return (*NAMES, "has", *ITEMS, *GAINS, *LOSSES, "+", "-", "=", ";", "####")
