"""Lengths and batches of similar rows, against exhaustive search and counts of the rows."""

import itertools

import numpy as np
import pytest

from gkd.data import length_buckets as buckets
from gkd.errors import InvalidValue


def lengths_of_texts(rows=500, seed=0):
    """Log-normal, as lengths of texts are."""
    return np.random.default_rng(seed).lognormal(4.0, 0.6, rows).astype(np.int64) + 1


def padded(lengths, steps):
    return sum(min(step for step in steps if step >= length) for length in lengths)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_lengths_of_the_same_number_pad_less(seed):
    lengths = np.minimum(lengths_of_texts(200, seed), 128)
    chosen = buckets.chosen_lengths(lengths, 128, most=3)
    candidates = range(16, 128, 16)
    best = min(
        padded(lengths, (*others, 128))
        for others in itertools.combinations(candidates, len(chosen) - 1)
    )
    assert padded(lengths, chosen) == best < 0.9 * 128 * len(lengths)


def test_a_length_that_saves_little_is_left_out():
    assert buckets.chosen_lengths(np.full(100, 120), 128, most=4) == (128,)
    assert buckets.chosen_lengths(np.array([]), 128, most=4) == (128,)
    few = np.array([128] * 99 + [10])
    assert buckets.chosen_lengths(few, 128, most=4) == (128,)
    half = np.array([128] * 50 + [10] * 50)
    assert buckets.chosen_lengths(half, 128, most=4) == (16, 128)


def shapes_of(rows=1000, **options):
    random = np.random.default_rng(1)
    lengths = {
        "inputs": lengths_of_texts(rows),
        "targets": random.integers(1, 40, rows),
        "teacher_inputs": lengths_of_texts(rows) + random.integers(1, 40, rows),
    }
    longest = {"inputs": 192, "targets": 40, "teacher_inputs": 240}
    return lengths, longest, buckets.choose_shapes(lengths, longest, **options)


@pytest.mark.parametrize("buckets_targets", [True, False])
def test_every_row_has_room_in_its_shape_and_in_those_it_moves_on_to(buckets_targets):
    lengths, longest, shapes = shapes_of(buckets_targets=buckets_targets)
    assert len(shapes.lengths) > 2 and shapes.lengths[-1] == longest
    if not buckets_targets:
        assert {shape["targets"] for shape in shapes.lengths} == {40}
    for row, shape in enumerate(shapes.of_row):
        while shape >= 0:
            for name, most in longest.items():
                assert min(lengths[name][row], most) <= shapes.lengths[shape][name]
            shape = shapes.next_of[shape]


def row_of(number, rows):
    epoch, place = divmod(number, rows)
    return (place * 7 + epoch) % rows  # another order in each epoch


def order_of(shapes, size, seed=5):
    rows = len(shapes.of_row)
    return buckets.BatchOrder(shapes, size, lambda number: row_of(number, rows), seed)


def test_every_row_comes_once_an_epoch_in_batches_of_its_shape():
    lengths, longest, shapes = shapes_of(rows=1003)
    order, seen, sizes = order_of(shapes, 32), np.zeros(1003, int), []
    group = 1003 // 32  # batches
    for number in range(4 * group):
        shape, rows = order.batch(number)
        assert rows.shape == (32,)
        np.add.at(seen, rows, 1)  # the end of an epoch and the start of the next may share a row
        sizes.append(shape["inputs"])
        for name, most in longest.items():
            assert (np.minimum(lengths[name][rows], most) <= shape[name]).all()
        if (number + 1) % group == 0:  # these very examples, of one epoch and the next
            examples = [row_of(example, 1003) for example in range(32 * (number + 1))]
            np.testing.assert_array_equal(seen, np.bincount(examples, minlength=1003))
    assert set(seen) == {3, 4}
    assert sizes[:group] != sizes[group : 2 * group]


def test_the_batches_of_a_length_are_spread_evenly_over_an_epoch():
    lengths = np.tile([10, 90], 1600)  # 200 batches of 8 rows each
    shapes = buckets.choose_shapes(
        {"inputs": lengths, "targets": np.full(3200, 5)}, {"inputs": 96, "targets": 5}, [16]
    )
    order = buckets.BatchOrder(shapes, 8, lambda number: number % 3200, 5)
    short = [order.batch(number)[0]["inputs"] == 16 for number in range(400)]
    assert abs(np.cumsum(short) - np.arange(1, 401) / 2).max() <= 1


def test_a_batch_depends_on_its_number_alone():
    _, _, shapes = shapes_of()
    one, other = order_of(shapes, 16), order_of(shapes, 16)
    forward = [one.batch(number) for number in range(150)]
    for number in (149, 3, 70, 0):
        shape, rows = other.batch(number)
        assert shape == forward[number][0] and rows.tolist() == forward[number][1].tolist()
    assert order_of(shapes, 16, seed=6).batch(0)[1].tolist() != forward[0][1].tolist()


def test_padding_of_lengths_as_of_texts_falls_below_a_fifth():
    rows = 20_000
    lengths = {"inputs": np.minimum(lengths_of_texts(rows), 192), "targets": np.full(rows, 8)}
    shapes = buckets.choose_shapes(lengths, {"inputs": 192, "targets": 8})
    order = order_of(shapes, 64)
    positions = sum(64 * order.batch(number)[0]["inputs"] for number in range(rows // 64))
    assert 1.0 < positions / lengths["inputs"].sum() < 1.2 < 192 * rows / lengths["inputs"].sum()


def test_given_lengths_are_taken_and_checked():
    _, _, shapes = shapes_of(inputs=[50, 100], buckets_targets=False)
    assert [shape["inputs"] for shape in shapes.lengths] == [50, 100, 192]
    for wrong in ([100, 50], [50, 50], [300]):
        with pytest.raises(InvalidValue, match="LENGTH_BUCKETS is .*at most INPUT_LENGTH, 192"):
            shapes_of(inputs=wrong)


def test_short_inputs_have_one_length():
    lengths = {"inputs": np.arange(1, 33), "targets": np.full(32, 5)}
    shapes = buckets.choose_shapes(lengths, {"inputs": 32, "targets": 16})
    assert shapes.lengths == ({"inputs": 32, "targets": 16},)


def test_a_finite_set_has_as_few_batches_as_possible_of_like_length():
    assert buckets.doubled_lengths(32) == (32,)
    assert buckets.doubled_lengths(20) == (20,)
    assert buckets.doubled_lengths(1000) == (32, 64, 128, 256, 512, 1000)
    planned = buckets.batches_of_like_length([3, 40, 32, 64, 65, 1], (32, 64, 70), 2)
    assert planned == [(70, [4, 1]), (64, [3, 0]), (32, [2, 5])]
    assert buckets.batches_of_like_length([33, 5, 5], (32, 64), 2) == [(64, [0, 1]), (32, [2])]


def test_short_inputs_have_one_length_and_others_at_most_six():
    lengths = lengths_of_texts(2000)
    assert buckets.input_lengths(np.minimum(lengths, 32), 32) == (32,)
    assert len(buckets.input_lengths(lengths, 192)) == 6
    assert len(buckets.input_lengths(lengths, 192, most=2)) == 2
