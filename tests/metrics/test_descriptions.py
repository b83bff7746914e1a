"""The descriptions of the log's numbers: every documented name has one, and units are right."""

import re

import pytest

from gkd.distill.divergences import reported_divergences
from gkd.metrics.descriptions import description_of
from tests.docs import pages


def names_of(page, heading):
    return [
        name for row in pages.tables(page, heading) for name in re.findall(r"`([^`]+)`", row[0])
    ]


def test_every_documented_number_of_a_run_is_described():
    rows = pages.tables("docs/metrics.md", "Metrics during training")
    names = [name for row in rows for name in re.findall(r"`((?:train|data)/\w+)`", row[0])]
    assert len(names) == 31
    assert [name for name in names if description_of(name) is None] == []


def test_every_documented_speed_is_described():
    rows = pages.tables("docs/metrics.md", "Metrics during training")
    names = [name for row in rows if len(row) == 3 for name in re.findall(r"`(\w+)`", row[1])]
    assert "goodput" in names and "mfu" in names
    assert [name for name in names if description_of(f"speed/{name}") is None] == []


@pytest.mark.parametrize("writer", ["on_policy", "reference"])
def test_every_divergence_of_an_evaluation_is_described(writer):
    for name in reported_divergences():
        text = description_of(f"evaluation/{writer}_{name}")
        # Total variation is a share of probability; all others have the natural logarithm's unit.
        assert ("nats" in text) == (name != "total_variation"), name
        assert ("own samples" in text) == (writer == "on_policy")


def test_names_of_ones_own_have_no_description():
    for name in ("train/mine", "mine", "evaluation/on_policy_mine", "speed/", "samples/xsum"):
        assert description_of(name) is None
