"""Confidence intervals against tables of Student's t distribution."""

import pytest

from gkd.metrics.intervals import mean_interval


def test_the_interval_of_five_values_is_the_tables():
    # s² = (4 + 1 + 0 + 1 + 4) / 4 = 2.5, t(0.975, 4) = 2.776: 2.776 · √(2.5 / 5) = 1.963
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3
    assert found["interval"] == pytest.approx(1.963, abs=1e-3)


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert mean_interval([7.0]) == {"values": [7.0], "mean": 7.0, "interval": None}
    assert mean_interval([]) == {"values": [], "mean": None, "interval": None}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_has_no_mean(value):
    found = mean_interval([1.0, value])
    assert (found["mean"], found["interval"]) == (None, None) and len(found["values"]) == 2
