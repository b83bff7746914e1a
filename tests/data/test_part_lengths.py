"""Layouts and profiles of batches in parts, against counts by hand and the rows' own lengths."""

import numpy as np
import pytest

from gkd.data import part_lengths
from gkd.distill.microbatches import split_rows


def epoch(rows, size, seed=0):
    order = np.random.default_rng(seed).permutation(rows)
    return order[: rows // size * size].reshape(-1, size)


def texts(rows=4000):
    return np.minimum(np.random.default_rng(1).lognormal(4.0, 0.6, rows).astype(int) + 1, 192)


@pytest.mark.parametrize(
    ("rows", "unit", "parts"), [(64, 16, 4), (32, 8, 4), (32, 16, 2), (48, 8, 2), (8, 8, 1)]
)
def test_parts_divide_the_rows_of_every_shard_and_microbatch(rows, unit, parts):
    assert part_lengths.parts_of(rows, unit) == parts


def test_every_shard_and_microbatch_has_the_same_share_of_each_part():
    lengths = np.random.default_rng(0).permutation(48) // 2  # pairs of equal lengths
    parts, shards, microbatches = 4, 3, 2
    order = part_lengths.by_length(lengths, parts, shards)
    assert sorted(order) == list(range(48))
    quarters = np.sort(lengths)[::-1].reshape(parts, -1)
    for microbatch in np.asarray(split_rows(order, microbatches)):  # [24]
        blocks = lengths[microbatch].reshape(shards, parts, -1)
        for part, quarter in enumerate(quarters):
            assert set(blocks[:, part].ravel()) <= set(quarter)
    # Rows of one length keep their order.
    assert part_lengths.by_length(np.ones(8), 4, 1).tolist() == list(range(8))


def test_a_batch_takes_the_profile_of_the_fewest_positions_that_has_room():
    # Ten batches of 16, 16, 16, 90; ten of 40, 48, 16, 80; one of 90 only: by hand, with 16s.
    lengths = np.array([16, 90, 16, 16, 40, 48, 16, 80, 90, 90, 90, 90])
    batches = np.array([[0, 1, 2, 3]] * 10 + [[4, 5, 6, 7]] * 10 + [[8, 9, 10, 11]])
    layout = part_lengths.choose_layout(batches, {"inputs": lengths}, {"inputs": 96}, 4)
    assert [profile["inputs"] for profile in layout.profiles] == [
        (96, 16, 16, 16), (80, 48, 48, 16), (96, 96, 96, 96),
    ]  # fmt: skip
    for rows, order, number in ((0, [1, 0, 2, 3], 0), (10, [3, 1, 0, 2], 1), (20, [0, 1, 2, 3], 2)):
        found, profile = layout.arrange({"inputs": lengths[batches[rows]]})
        assert found.tolist() == order and profile is layout.profiles[number]
    # One row more of 17 tokens in the second part has no room in the first profile.
    assert layout.arrange({"inputs": np.array([16, 90, 17, 16])})[1] is layout.profiles[2]


def test_no_parts_where_they_save_less_than_three_percent():
    full, prompts = np.full(400, 96), {"inputs": 96}
    assert part_lengths.choose_layout(epoch(400, 8), {"inputs": full}, prompts, 4) is None
    in_order = np.arange(400).reshape(-1, 8)
    for short, layouts in ((8, 0), (16, 1)):  # of 400 rows: 1.7% and 3.3% of the positions
        some = {"inputs": np.where(np.arange(400) < short, 16, 96)}
        found = part_lengths.choose_layout(in_order, some, prompts, 4)
        assert (found is not None) == layouts
    short = np.arange(1, 401) % 32 + 1
    assert part_lengths.choose_layout(epoch(400, 8), {"inputs": short}, {"inputs": 32}, 4) is None
    assert part_lengths.choose_layout(epoch(400, 8), {"inputs": texts(400)}, prompts, 1) is None


@pytest.mark.parametrize(("size", "parts", "most"), [(8, 4, 1.6), (32, 4, 1.6), (16, 2, 1.9)])
def test_a_few_profiles_hold_every_batch_of_texts(size, parts, most):
    """Positions per token: 2.9 with all padding."""
    lengths, longest = texts(), {"inputs": 192}
    batches = epoch(4000, size)
    layout = part_lengths.choose_layout(batches[:200], {"inputs": lengths}, longest, parts)
    assert 2 <= len(layout.profiles) <= 4
    assert layout.profiles[-1]["inputs"] == (192,) * parts
    positions = 0
    for rows in batches:
        order, profile = layout.arrange({"inputs": lengths[rows]})
        laid_out = lengths[rows][order].reshape(parts, -1)
        for part, length in zip(laid_out, profile["inputs"], strict=True):
            assert part.max() <= length
        positions += sum(profile["inputs"]) * size / parts
    assert positions / lengths[batches].sum() < most < 192 / lengths.mean()


def test_the_teachers_prompts_have_lengths_of_their_own_in_the_same_layout():
    inputs = texts()
    own = np.minimum(inputs + np.random.default_rng(2).integers(1, 120, 4000), 320)
    lengths = {"inputs": inputs, "teacher_inputs": own}
    longest, batches = {"inputs": 192, "teacher_inputs": 320}, epoch(4000, 16)
    layout = part_lengths.choose_layout(batches, lengths, longest, 4)
    for rows in batches[:50]:
        given = {name: column[rows] for name, column in lengths.items()}
        order, profile = layout.arrange(given)
        assert order.tolist() == part_lengths.by_length(inputs[rows], 4, 1).tolist()
        for name, column in given.items():
            assert (column[order].reshape(4, -1).max(axis=1) <= profile[name]).all()
    assert any(min(profile["teacher_inputs"]) < 320 for profile in layout.profiles)
    fields = part_lengths.parts_by_field(layout.profiles[-1], longest, 1)
    assert fields == {"input_parts": None, "teacher_input_parts": None}
