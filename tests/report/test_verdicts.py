"""Verdicts of sweeps as a report lists them."""

import json

import pytest

from gkd.report.charts import Difference
from gkd.report.verdicts import find_verdicts, verdict_charts, verdicts_table
from gkd.sweep import claims


def decided(*, verdict="holds"):
    comparison = {"values": [1.0], "mean": 1.5, "interval": 0.25, "verdict": verdict}
    return {"claim": "b is better", "verdict": verdict, "comparisons": {"b − a": comparison}}


def test_every_verdict_below_the_folders_is_listed_once(tmp_path):
    for name in ("one", "two"):
        claims.write(tmp_path / name, decided())
    found, problems = find_verdicts([tmp_path, tmp_path / "one"])
    assert problems == []
    assert verdicts_table(found).rows == [
        ["b is better", "holds", ""], ["— b − a", "holds", "+1.50 ± 0.25"],
    ] * 2  # fmt: skip
    assert verdicts_table([]) is None


def test_the_warnings_of_a_verdict_are_shown_beside_it(tmp_path):
    claims.write(tmp_path, {**decided(), "warnings": ["made otherwise: sft/0"]})
    found, problems = find_verdicts([tmp_path])
    assert problems == [] and verdicts_table(found).rows == [
        ["b is better", "holds", ""],
        ["— warning", "made otherwise: sft/0", ""],
        ["— b − a", "holds", "+1.50 ± 0.25"],
    ]
    (chart,) = verdict_charts(found)
    assert chart.note == "b is better. made otherwise: sft/0."


@pytest.mark.parametrize(
    "content",
    [
        "half", "[]", "{}", json.dumps({**decided(), "verdict": 3}),
        json.dumps({**decided(), "comparisons": {"x": {"mean": "<b>"}}}),
        json.dumps({**decided(), "comparisons": {"x": 3}}),
        json.dumps({**decided(), "warnings": [3]}), json.dumps({**decided(), "warnings": "x"}),
        json.dumps(decided()).replace("[1.0]", '["<b>"]'),
    ],
)  # fmt: skip
def test_a_damaged_verdict_is_one_line(tmp_path, content):
    (tmp_path / "verdict.json").write_text(content)
    found, problems = find_verdicts([tmp_path])
    assert found == [] and len(problems) == 1
    assert "verdict.json" in problems[0] and "\n" not in problems[0]


def test_a_claim_is_a_figure_with_its_seeds_intervals_and_thresholds(tmp_path):
    runs = [
        ({"method": m, "seed": str(s)}, {"bleu": s + 2.0 * (m == "b"), "rouge2": s})
        for m in "ab"
        for s in (0, 1)
    ]
    ahead = {"plus": [{"method": "b"}], "minus": [{"method": "a"}]}
    comparisons = {
        "ahead": {**ahead, "metric": "bleu", "above": 1.5},
        "as good": {**ahead, "metric": "rouge2", "above": -1, "below": 1},
    }
    claims.write(tmp_path, claims.decide(runs, "b is better", comparisons))
    (found,), problems = find_verdicts([tmp_path])
    charts = verdict_charts([found])
    assert problems == [] and [(chart.name, chart.x_label) for chart in charts] == [
        ("claim-1-bleu", "difference in bleu"), ("claim-1-rouge2", "difference in rouge2"),
    ]  # fmt: skip
    assert [row for chart in charts for row in chart.rows] == [
        Difference("ahead", "holds", [2.0, 2.0], 2.0, 0.0, [1.5]),
        Difference("as good", "holds", [0, 0], 0.0, 0.0, [-1, 1]),
    ]
    assert {(chart.title, chart.note) for chart in charts} == {("Claim: holds", "b is better.")}
    claims.write(tmp_path, claims.decide(runs, "b", {"ahead": comparisons["ahead"]}))
    (chart,) = verdict_charts(find_verdicts([tmp_path])[0])
    assert chart.x_label == "difference in bleu" and chart.rows[0].label == "ahead"
