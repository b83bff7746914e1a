"""Verdicts of sweeps as a report lists them."""

import json

import pytest

from gkd.report.verdicts import find_verdicts, verdicts_table
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


@pytest.mark.parametrize(
    "content",
    [
        "half", "[]", "{}", json.dumps({**decided(), "verdict": 3}),
        json.dumps({**decided(), "comparisons": {"x": {"mean": "<b>"}}}),
        json.dumps({**decided(), "comparisons": {"x": 3}}),
    ],
)  # fmt: skip
def test_a_damaged_verdict_is_one_line(tmp_path, content):
    (tmp_path / "verdict.json").write_text(content)
    found, problems = find_verdicts([tmp_path])
    assert found == [] and len(problems) == 1
    assert "verdict.json" in problems[0] and "\n" not in problems[0]
