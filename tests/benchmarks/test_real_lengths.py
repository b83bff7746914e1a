"""Rows of real lengths, and the batches that stand for an epoch."""

import doctest

import numpy as np
import pytest

from benchmarks import real_lengths
from benchmarks.real_lengths import Rows, Stratum, seconds_per_token, strata


def test_the_examples_of_its_functions_hold():
    tried = doctest.testmod(real_lengths)
    assert tried.attempted >= 4 and not tried.failed


def test_lengths_like_xsum_have_the_stated_moments_and_limits():
    rows = real_lengths.xsum_like(20_000)
    # Of the log-normal with mean 450 and deviation 300, 4.9% exceed 1024: σ = √ln(1 + (2/3)²),
    # P(X > c) = Φ((μ − ln c)/σ), and E[min(X, c)] = E[X]·Φ((ln c − μ)/σ − σ) + c·P(X > c).
    assert (rows.inputs == 1024).mean() == pytest.approx(0.0486, abs=0.004)
    assert rows.inputs.mean() == pytest.approx(434.0, rel=0.01)
    assert rows.inputs.max() == 1024 and rows.targets.max() <= 64
    assert rows.targets.mean() == pytest.approx(28, rel=0.01)
    assert rows.targets.std() == pytest.approx(8, rel=0.03)


def test_saved_rows_are_the_same_again(tmp_path):
    rows = Rows(np.array([3, 9]), np.array([2, 4]), 16, 8)
    rows.save(tmp_path / "rows.npz")
    again = real_lengths.load(tmp_path / "rows.npz")
    assert again.tokens.tolist() == [5, 13]
    assert (again.longest_input, again.longest_target) == (16, 8)


def test_made_up_rows_end_with_eos_and_hold_no_padding():
    inputs, targets = Rows(np.array([3, 9]), np.array([2, 4]), 16, 8).texts(50)
    assert [len(row) for row in inputs + targets] == [3, 9, 2, 4]
    for row in inputs + targets:
        assert row[-1] == 1 and row[:-1].min() >= 3 and row.max() < 50


def test_drawn_rows_are_cut_and_keep_inputs_with_their_targets():
    rows = real_lengths.drawn(np.arange(1, 101), np.arange(1, 101) * 2, (50, 80), 30)
    assert len(rows.inputs) == 30
    assert np.array_equal(rows.targets, np.minimum(2 * rows.inputs, 80))
    assert rows.inputs.max() <= 50


def test_few_shapes_are_a_stratum_each_and_the_batch_with_the_middle_output_stands_for_them():
    shapes = [(2, 8, 4)] * 3 + [(2, 4, 4)]
    found = strata(shapes, [9, 1, 5, 7], [10, 20, 60, 8], most=2)
    assert found == [Stratum(3, 1, 8.0, 16.0), Stratum(2, 3, 30.0, 24.0)]


def test_many_shapes_are_equal_parts_that_hold_every_batch_once():
    shapes = [(1, length, 2) for length in (10, 7, 3, 9, 5, 8, 4)]
    found = strata(shapes, [1] * 7, [length for _, length, _ in shapes], most=3)
    assert [stratum.batches for stratum in found] == [3, 2, 2]
    assert [stratum.tokens for stratum in found] == [4.0, 7.5, 9.5]
    assert [stratum.batch for stratum in found] == [6, 5, 0]


def test_an_epochs_rate_counts_every_stratum_by_its_batches():
    of = [Stratum(0, 3, 10.0, 12.0), Stratum(5, 1, 20.0, 30.0)]
    assert seconds_per_token([1.0, 4.0], of) == pytest.approx((3 * 1 + 4) / (3 * 10 + 20))
