"""Who generates a step: schedules of λ."""

import pytest

from gkd.distill import mixing


def test_a_linear_schedule_by_hand():
    schedule = mixing.linear_schedule(0.0, 0.8, 4, after=2)
    got = [round(float(schedule(step)), 4) for step in (0, 2, 3, 6, 100)]
    assert got == [0.0, 0.0, 0.2, 0.8, 0.8]
    with pytest.raises(ValueError, match="λ is 1.2"):
        mixing.linear_schedule(0.0, 1.2, 4)
