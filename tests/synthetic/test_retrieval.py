"""Questions about one of many statements: answers, short contexts, splits, sizes."""

import re

import pytest

from gkd.errors import InvalidValue
from gkd.synthetic import retrieval


def facts(text):
    """{(name, verb, item): number} of the statements, and the key that is asked for."""
    context, question = text.split(". ")
    found = {}
    for statement in context.split(", "):
        name, verb, number, item = statement.split(" ")
        assert (name, verb, item) not in found, "two statements about the same"
        found[name, verb, item] = number
    return found, tuple(question.removesuffix(" =").split(" "))


@pytest.mark.parametrize("evidence", [1, 3, 12])
def test_the_answer_is_in_the_whole_and_in_the_short_context(evidence):
    made = retrieval.questions("train", 200, context=12, evidence=evidence)
    places = set()
    for question in made:
        whole, key = facts(question.input)
        short, same = facts(question.evidence)
        assert key == same and len(whole) == 12 and len(short) == evidence
        assert question.target == f"#### {whole[key]}" == f"#### {short[key]}"
        assert question.evidence.split(". ")[0] in question.input  # neighbours, in their order
        places.add((list(whole).index(key), list(short).index(key)))
    assert {place for place, _ in places} == set(range(12))
    assert {place for _, place in places} == set(range(evidence))


def test_splits_share_no_context_and_seeds_differ():
    splits = {
        (name, seed): {
            q.input.split(". ")[0] for q in retrieval.questions(name, 300, seed, 1, 1, 1)
        }
        for name in ("train", "validation", "test")
        for seed in (0, 1)
    }
    for (first, _), ours in splits.items():
        for (second, _), theirs in splits.items():
            assert first == second or not ours & theirs
    assert splits["train", 0] != splits["train", 1]


def test_fewer_rows_are_a_prefix_and_every_number_of_digits_is_kept():
    many, few = (retrieval.questions("test", rows, digits=3) for rows in (30, 10))
    assert many[:10] == few
    numbers = {int(found) for q in many for found in re.findall(r"\d+", q.input)}
    assert max(numbers) > 900 and min(numbers) < 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "no split 'dev'"),
        ({"context": 289}, "context=289 must be between 1 and 288"),
        ({"context": 4, "evidence": 5}, "evidence=5 must be between 1 and 4"),
        ({"digits": 0}, "digits=0 must be at least 1"),
    ],
)
def test_sizes_out_of_range_are_one_line(settings, message):
    with pytest.raises(InvalidValue, match=message):
        retrieval.questions(**{"split": "train", "rows": 1, **settings})
