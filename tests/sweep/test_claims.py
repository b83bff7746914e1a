"""Verdicts on claims against intervals by hand."""

import json

import pytest

from gkd.errors import InvalidValue
from gkd.sweep import claims

# Five seeds, far apart: only pairing shows that b is ahead of a by 3 ± 1.24 (s = 1, t = 2.776).
A = {"0": 10.0, "1": 50.0, "2": 30.0, "3": 70.0, "4": 90.0}
AHEAD = {"0": 2.0, "1": 2.0, "2": 3.0, "3": 4.0, "4": 4.0}


def runs(**rows):
    return [
        (
            {"method": method, "seed": seed},
            None if value is None else {"evaluation": {"bleu": value}},
        )
        for method, values in rows.items()
        for seed, value in values.items()
    ]


TWO = runs(a=A, b={seed: A[seed] + AHEAD[seed] for seed in A})


def ahead(**bounds):
    return {"plus": [{"method": "b"}], "minus": [{"method": "a"}], "metric": "bleu", **bounds}


@pytest.mark.parametrize(
    "bounds, verdict",
    [
        ({"above": 0}, "holds"), ({"above": 1.7}, "holds"), ({"above": 1.8}, "inconclusive"),
        ({"above": 4.2}, "inconclusive"), ({"above": 4.3}, "does not hold"),
        ({"below": 4.3}, "holds"), ({"below": 4.2}, "inconclusive"),
        ({"below": 1.7}, "does not hold"), ({"above": -5, "below": 5}, "holds"),
        ({"above": -1, "below": 1}, "does not hold"), ({"above": -4, "below": 4}, "inconclusive"),
    ],
)  # fmt: skip
def test_the_whole_interval_decides(bounds, verdict):
    decided = claims.decide(TWO, "b is better", {"b − a": ahead(**bounds)})
    assert decided["verdict"] == decided["comparisons"]["b − a"]["verdict"] == verdict
    assert decided["comparisons"]["b − a"]["mean"] == 3
    assert decided["comparisons"]["b − a"]["interval"] == pytest.approx(2.776 / 5**0.5, rel=1e-3)


def test_a_difference_of_differences_is_paired_too():
    more = runs(c={seed: A[seed] + 10 for seed in A}, d={seed: A[seed] + 17 for seed in A})
    grows = {
        "plus": [{"method": "d"}, {"method": "a"}],
        "minus": [{"method": "c"}, {"method": "b"}],
    }
    decided = claims.decide([*TWO, *more], "", {"x": {**grows, "metric": "bleu", "above": 2}})
    assert decided["comparisons"]["x"]["values"] == [7 - AHEAD[seed] for seed in A]
    assert decided["verdict"] == "holds"


@pytest.mark.parametrize(
    "at_least, verdict",
    [(None, "does not hold"), (1, "holds"), (2, "inconclusive"), (3, "does not hold")],
)
def test_so_many_comparisons_must_hold(at_least, verdict):
    comparisons = {"1": ahead(above=0), "2": ahead(above=3), "3": ahead(above=9)}
    assert claims.decide(TWO, "", comparisons, at_least)["verdict"] == verdict


def test_a_missing_run_leaves_the_claim_incomplete():
    some = runs(a=A, b={**{seed: A[seed] + 3 for seed in A}, "4": None})
    decided = claims.decide(some, "", {"x": ahead(above=0)})
    assert decided["verdict"] == "incomplete" and decided["comparisons"]["x"]["seeds"] == list(
        "0123"
    )


def test_one_seed_proves_nothing():
    one = runs(a={"0": 1.0}, b={"0": 9.0})
    assert claims.decide(one, "", {"x": ahead(above=0)})["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    "comparison, error",
    [
        ({"plus": [{"method": "b"}], "metric": "bleu"}, "give a number above, below, or both"),
        ({**ahead(above=0), "over": 1}, "give plus, minus, metric, above, below"),
        (ahead(above=0) | {"metric": "rouge"}, "no metric 'rouge'; known: bleu"),
        (ahead(above=0) | {"plus": [{"method": "z"}]}, "0 runs have {'method': 'z', 'seed': '0'}"),
        (ahead(above=0) | {"plus": [{}]}, "2 runs have {'seed': '0'}"),
        ("b > a", "give plus, minus, metric, above, below"),
    ],
)
def test_a_malformed_comparison_is_one_line(comparison, error):
    with pytest.raises(InvalidValue) as raised:
        claims.decide(TWO, "", {"x": comparison})
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_a_verdict_is_printed_and_written(tmp_path, capsys):
    claims.write(tmp_path / "s", claims.decide(TWO, "b is better", {"b − a": ahead(above=0)}))
    text = (tmp_path / "s" / "verdict.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == text
    assert text.startswith("b is better: **holds**\n")
    assert "| b − a | 5 | +3.00 ± 1.24 | holds |" in text
    assert json.loads((tmp_path / "s" / "verdict.json").read_text())["verdict"] == "holds"
