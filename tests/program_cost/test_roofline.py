"""The roofline of a program on a chip."""

import dataclasses

import pytest

from gkd.program_cost.program_cost import program_cost
from gkd.program_cost.roofline import Chip, roofline
from tests.program_cost.programs import TPU

pytestmark = pytest.mark.usefixtures("optimized")


def test_the_roofline_is_the_slower_of_compute_and_memory_plus_the_collectives():
    cost = program_cost(TPU)
    chip = Chip(flops=1.0, memory=1, bandwidth=2.0, interconnect=3.0)
    moved, sent = 4 * 256 * 64 * 4 + 2 * 16 * 256 + 2 * 2 * 64 * 256, 2 * 64 * 256 * 0.75
    assert roofline(cost, chip).seconds == pytest.approx(moved / 2 + sent / 3)
    part = dataclasses.replace(cost.parts[0], multiplier_flops=1e6)
    busy = dataclasses.replace(cost, parts=(part, *cost.parts[1:]))
    assert roofline(busy, chip).seconds == pytest.approx(1e6 + sent / 3)
    idle = moved - cost.parts[0].bytes
    assert roofline(busy, chip).no_overlap == pytest.approx(1e6 + idle / 2 + sent / 3)
