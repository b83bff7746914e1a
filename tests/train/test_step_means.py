"""Means over the steps since the last row: weighted, resumable, not spoilt by a skipped step."""

import json
import math

import numpy as np
import pytest

from gkd.train.step_means import StepMeans, steps_updated


def pairs(loss, weight=1.0, **others):
    return {"loss": (np.float32(loss), np.float32(weight)), **others}


def test_a_mean_is_of_all_tokens_not_of_the_steps():
    """Losses {4} and {1, 1, 1}: 7 / 4, where the mean of the two means is 2.5."""
    means = StepMeans()
    means.add(pairs(4, 1))
    means.add(pairs(3, 3))
    assert means.take() == {"loss": 1.75}
    means.add(pairs(6, 2))  # a row begins anew
    assert means.take() == {"loss": 3.0}


def test_of_one_step_nothing_is_rounded():
    means = StepMeans()
    total, weight = np.float32(0.1), np.float32(3)
    means.add({"loss": (total, weight)})
    assert means.take() == {"loss": float(total) / float(weight)}


def test_counters_are_the_newest():
    means = StepMeans()
    for skipped, streak in ((1, 1), (2, 2), (2, 0)):
        means.add({"train/skipped": (skipped, 1.0), "train/skipped_in_a_row": (streak, 1.0)})
    assert means.take() == {"train/skipped": 2.0, "train/skipped_in_a_row": 0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_is_left_out_of_its_metric(bad):
    means = StepMeans()
    means.add(pairs(2, 1, on_policy=(1.0, 1.0)))
    means.add(pairs(bad, 1, on_policy=(0.0, 1.0)))
    assert means.take() == {"loss": 2.0, "on_policy": 0.5}
    means.add(pairs(bad))
    assert math.isnan(means.take()["loss"])


def test_what_nothing_weighs_is_zero():
    means = StepMeans()
    means.add({"train/sample_entropy": (0.0, 0.0)})
    assert means.take() == {"train/sample_entropy": 0.0}


def test_sampled_tokens_are_counted_over_all_rows():
    """Two rows sampled with 3 and 5 tokens, two rows of data: 8 / 4."""
    means = StepMeans()
    means.add({"train/sample_entropy": (9.0, 8.0), "train/target_length": (8.0, 2.0)})
    means.add({"train/sample_entropy": (0.0, 0.0), "train/target_length": (22.0, 2.0)})
    assert means.sampled_length() == 2.0
    assert StepMeans().sampled_length() == 0.0


def test_saved_anywhere_the_row_is_the_same_to_the_bit():
    steps = [pairs(x, w) for x, w in np.random.default_rng(0).random((10, 2), np.float32)]
    whole = StepMeans()
    for step in steps:
        whole.add(step)
    want = whole.take()
    for cut in range(11):
        means = StepMeans()
        for step in steps[:cut]:
            means.add(step)
        saved = json.loads(json.dumps(means.state(), allow_nan=False))
        means = StepMeans()
        means.restore(saved)
        for step in steps[cut:]:
            means.add(step)
        assert means.take() == want


@pytest.mark.parametrize("sums", [[1.0, 2.0], "x", [1.0, "2", 3.0], [1.0, math.nan, 0.0], None])
def test_other_sums_are_one_line(sums):
    with pytest.raises(ValueError, match=r"sums of the metric loss is"):
        StepMeans().restore({"loss": sums})


@pytest.mark.parametrize(
    "number, skipped, streak, updates, done",
    [
        (1, 0, 0, 1, 0), (4, 0, 0, 1, 3), (4, 1, 1, 1, 3), (4, 2, 2, 1, 2), (5, 2, 0, 1, 2),
        (3, 0, 0, 4, 2), (3, 4, 0, 4, 1), (3, 4, 4, 4, 2),
    ],
)  # fmt: skip
def test_the_learning_rate_is_that_of_the_updates_that_counted(
    number, skipped, streak, updates, done
):
    """Of 4 steps, the first 3 were taken and the fourth is skipped: its rate is the fourth's."""
    metrics = {"skipped": (skipped, 1.0), "skipped_in_a_row": (streak, 1.0)}
    assert steps_updated(number, metrics, updates) == done
