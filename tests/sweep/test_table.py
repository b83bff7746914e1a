"""Means and intervals of a sweep."""

import pytest

from gkd.sweep import table


def _run(method, seed, **values):
    evaluation = {name: value for name, value in values.items() if name != "seconds_per_step"}
    summary = {"seconds_per_step": values.get("seconds_per_step"), "evaluation": evaluation}
    return {"method": method, "seed": seed}, summary


def test_means_and_intervals_are_those_computed_by_hand():
    runs = [_run("a", str(i), rouge2=value) for i, value in enumerate([1.0, 2.0, 6.0])]
    runs += [_run("b", "0", rouge2=10.0), _run("b", "1", rouge2=12.0)]
    runs += [({"method": "b", "seed": "2"}, None), ({"method": "c", "seed": "0"}, None)]
    averaged = table.averages(runs, ["rouge2"], "seed")
    a, b, c = (row["metrics"]["rouge2"] for row in averaged["rows"])
    # s = √7 and t(.975; 2) = 4.302653 from a printed table; s = √2 and t(.975; 1) = 12.706205.
    assert a["mean"] == 3.0 and a["interval"] == pytest.approx(4.302653 * (7 / 3) ** 0.5, rel=1e-6)
    assert b["mean"] == 11.0 and b["interval"] == pytest.approx(12.706205, rel=1e-6)
    assert c == {"values": [], "mean": None, "interval": None}
    assert table.markdown(averaged).splitlines()[2:] == [
        "| a | 3/3 | 3.00 ± 6.57 |",
        "| b | 2/3 | 11.00 ± 12.71 |",
        "| c | 0/1 | – |",
    ]
    # Over the other axis: the seeds are the rows.
    averaged = table.averages(runs[:5], ["rouge2"], "method")
    assert [row["options"] for row in averaged["rows"]] == [{"seed": seed} for seed in "012"]
    assert [row["metrics"]["rouge2"]["mean"] for row in averaged["rows"]] == [5.5, 7.0, 6.0]


def test_rows_of_different_metrics_and_rows_that_disagree():
    runs = [_run("a", "0", rouge2=2.0), _run("a", "1", rouge2=2.0), _run("b", "0", bleu=3.0)]
    averaged = table.averages(runs, ["rouge2", "bleu"], "seed")
    assert table.markdown(averaged).splitlines()[2:] == [
        "| a | 2/2 | 2.00 ± 0.00 | – |",
        "| b | 1/1 | – | 3.00 |",
    ]
    mixed = table.averages([runs[0], _run("a", "1", bleu=1.0, rouge2=None)], ["rouge2"], "seed")
    assert table.markdown(mixed).splitlines()[2:] == ["| a | 2/2 | – |"], "no mean of some runs"
    with pytest.raises(ValueError, match="needs metrics"):
        table.averages(runs, [], "seed")


def test_paired_differences_are_those_computed_by_hand():
    """Differences of 1, 2, 6 between seeds that lie far apart: only pairing shows them."""
    runs = [_run("sft", str(i), rouge2=value) for i, value in enumerate([10.0, 50.0, 90.0, 7.0])]
    runs += [_run("a", str(i), rouge2=value) for i, value in [(2, 96.0), (0, 11.0), (1, 52.0)]]
    runs += [({"method": "a", "seed": "3"}, None)]  # no pair
    averaged = table.averages(runs, ["rouge2"], "seed", {"method": "sft"})
    sft, a = (row["differences"]["rouge2"] for row in averaged["rows"])
    assert sft["values"] == [0.0] * 4 and sorted(a["values"]) == [1.0, 2.0, 6.0]
    assert a["mean"] == 3.0 and a["interval"] == pytest.approx(4.302653 * (7 / 3) ** 0.5, rel=1e-6)
    head, _, _, line = table.markdown(averaged).splitlines()
    assert head == "| method | runs | rouge2 | rouge2: difference |"
    assert line.endswith("| +3.00 ± 6.57 |")
    with pytest.raises(ValueError, match="BASELINE is {'method': 'b'}, which no row"):
        table.averages(runs, ["rouge2"], "seed", {"method": "b"})
