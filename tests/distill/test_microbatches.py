"""Rows cut into microbatches and joined again."""

import numpy as np
import pytest

from gkd.distill.microbatches import join_rows, split_rows


def test_a_part_takes_every_mth_prompt_with_all_its_samples():
    rows = np.arange(12).reshape(12, 1)  # 6 prompts of 2 samples
    parts = split_rows({"x": rows}, 3, samples=2)["x"]
    assert parts[:, :, 0].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


@pytest.mark.parametrize(("microbatches", "samples"), [(1, 1), (2, 1), (2, 3), (4, 1)])
def test_joining_undoes_splitting(microbatches, samples):
    rows = np.arange(24).reshape(12, 2)
    parts = split_rows(rows, microbatches, samples)
    np.testing.assert_array_equal(join_rows(parts, samples), rows)
