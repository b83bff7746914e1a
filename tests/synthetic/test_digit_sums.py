"""Digit sums: right outputs, splits, sizes."""

import collections

import pytest

from gkd.errors import InvalidValue
from gkd.synthetic.digit_sums import digit_sums, split_of


def test_every_output_has_the_sum_and_the_number_of_digits_of_its_input():
    rows = digit_sums("train", 500, digits=5)
    for row in rows:
        equals, total, semicolon, count = row.input.split(" ")
        written = [int(word) for word in row.target.split(" ")]
        assert (equals, semicolon) == ("=", ";")
        assert (sum(written), len(written)) == (int(total), int(count)) and count == "5"
    counts = collections.Counter(digit for row in rows for digit in row.target.split(" "))
    assert set(counts) == set("0123456789") and min(counts.values()) > 0.08 * 2500


def test_splits_share_no_output_and_seeds_differ():
    made = {
        (split, seed): {row.target for row in digit_sums(split, 200, seed)}
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    }
    assert all(len(targets) == 200 for targets in made.values())
    for (split, _), targets in made.items():
        assert {split_of(target) for target in targets} == {split}
    assert made["train", 0] != made["train", 1]
    assert digit_sums("train", 20) == digit_sums("train", 50)[:20]


def test_an_input_has_many_right_outputs():
    outputs = collections.defaultdict(set)
    for row in digit_sums("train", 4000):
        outputs[row.input].add(row.target)
    assert len(outputs["= 18 ; 4"]) > 100


@pytest.mark.parametrize(
    "arguments, error",
    [
        (("all", 1), "no split 'all'"),
        (("train", 0), "rows=0 must be at least 1"),
        (("train", 1, 0, 0), "digits=0 must be at least 1"),
        (("test", 50, 0, 2), "test rows of 2 digits found, 50 asked for"),
    ],
)
def test_a_wrong_size_is_one_line(arguments, error):
    with pytest.raises(InvalidValue, match=error):
        digit_sums(*arguments)
