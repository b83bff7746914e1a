"""The synthetic word problems: right, in bounds, disjoint by their numbers, reproducible."""

import hashlib
import re
import subprocess
import sys

import pytest

from gkd.synthetic import arithmetic


def replayed(problem):
    """The totals that the story's own words give."""
    story = re.findall(r"(\w+) (\d+)", problem.input)
    totals = [int(story[0][1])]
    for verb, amount in story[1:]:
        sign = {"finds": 1, "wins": 1, "buys": 1, "gets": 1}.get(verb, -1)
        totals.append(totals[-1] + sign * int(amount))
    return totals


@pytest.mark.parametrize(("steps", "digits"), [(1, 1), (5, 1), (3, 3)])
def test_story_equations_and_totals_say_the_same(steps, digits):
    options = {"split": "train", "rows": 60, "seed": 3, "steps": steps, "digits": digits}
    for problem in arithmetic.problems(**options, solution="equations"):
        totals = replayed(problem)
        assert len(totals) == steps + 1
        assert min(totals) >= 0
        worked, answer = problem.target.split(" #### ")
        assert answer == str(totals[-1])
        equations = [re.findall(r"\d+|[+-]", equation) for equation in worked.split(" ; ")]
        for equation, before, after in zip(equations, totals, totals[1:], strict=False):
            left, sign, amount, right = equation
            assert (int(left), int(right)) == (before, after)
            assert int(left) + int(sign + amount) == int(right)
            assert 1 <= int(amount) <= 10**digits - 1
    for problem in arithmetic.problems(**options, solution="totals"):
        totals = replayed(problem)
        assert problem.target == f"{' '.join(map(str, totals[1:]))} #### {totals[-1]}"


def test_a_problem_by_hand():
    problem = arithmetic.Problem("Tom has 7 coins, finds 4, loses 2.", "", (7, 4, -2))
    assert replayed(problem) == [7, 11, 9]
    assert arithmetic.split_of((7, 4, -2)) == "train"


def test_splits_share_no_numbers_whatever_the_seed():
    numbers = {
        (split, seed): {p.numbers for p in arithmetic.problems(split, 60, seed, steps=2)}
        for split in arithmetic.SPLITS
        for seed in (0, 1)
    }
    for (split, seed), mine in numbers.items():
        assert len(mine) == 60  # distinct within a split
        for (other, other_seed), theirs in numbers.items():
            if split != other:
                assert not mine & theirs, (split, seed, other, other_seed)
        for problem in mine:
            bucket = int(hashlib.sha256(",".join(map(str, problem)).encode()).hexdigest()[:16], 16)
            assert {0: "validation", 1: "test"}.get(bucket % 10, "train") == split


def test_first_rows_do_not_depend_on_the_number_or_the_process():
    many = arithmetic.problems("train", 50, seed=4)
    assert arithmetic.problems("train", 20, seed=4) == many[:20]
    assert arithmetic.problems("train", 20, seed=5) != many[:20]
    code = "from gkd.synthetic.arithmetic import problems; print(problems('train', 50, seed=4))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == repr(many)


def test_steps_are_drawn_between_the_bounds():
    rows = arithmetic.problems("train", 200, steps=4, minimum_steps=2)
    assert {len(problem.numbers) - 1 for problem in rows} == {2, 3, 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev", "rows": 1}, "no split 'dev'"),
        ({"split": "train", "rows": 1, "solution": "prose"}, "solution='prose'"),
        ({"split": "train", "rows": 0}, "rows=0"),
        ({"split": "train", "rows": 1, "digits": 0}, "digits=0"),
        ({"split": "train", "rows": 1, "steps": 3, "minimum_steps": 4}, "minimum_steps=4"),
        ({"split": "train", "rows": 200, "steps": 1}, "fewer rows or more steps"),
    ],
)
def test_bad_settings_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        arithmetic.problems(**options)
    assert "\n" not in str(error.value)
