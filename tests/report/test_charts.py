"""The words that stand for a figure."""

from gkd.report.charts import (
    Difference,
    DifferenceChart,
    HeatMap,
    Line,
    LineChart,
    StackedBars,
)


def test_lines_are_described_by_their_ends():
    line = Line("gkd", [0, 10, 20], [1.0, 5.0, 3.0])
    chart = LineChart("a", "A", "step", "BLEU", [line], {"teacher": 9})
    assert chart.description() == "BLEU by step. gkd: from 1 at 0 to 3 at 20; teacher: 9."


def test_cells_without_a_run_are_not_described():
    chart = HeatMap("a", "A", "divergence", "λ", ["kl", "tv"], ["1"], [[2.0, None]])
    assert chart.description() == "λ and divergence. 1, kl: +2."


def test_bars_are_described_by_their_parts():
    chart = StackedBars("a", "A", "milliseconds", ["gkd"], {"sampling": [3.0], "update": [4.0]})
    assert chart.description() == "milliseconds. gkd: sampling 3, update 4."


def test_differences_are_described_with_their_verdicts():
    rows = [
        Difference("ahead", "holds", [1.0, 3.0], 2.0, 12.7062, [0]),
        Difference("later", "incomplete", [], None, None, [0]),
    ]
    chart = DifferenceChart("a", "A", "points", rows)
    assert chart.description() == "points. ahead: +2 ± 13, holds; later: no value, incomplete."
