"""Padded lengths and batches, by hand."""

from gkd.infer import batched_program


def test_a_plan_has_as_few_batches_as_possible_of_like_length():
    assert batched_program.length_buckets(32) == (32,)
    assert batched_program.length_buckets(20) == (20,)
    assert batched_program.length_buckets(1000) == (32, 64, 128, 256, 512, 1000)
    planned = batched_program.plan([3, 40, 32, 64, 65, 1], (32, 64, 70), 2)
    assert planned == [(70, [4, 1]), (64, [3, 0]), (32, [2, 5])]
    assert batched_program.plan([33, 5, 5], (32, 64), 2) == [(64, [0, 1]), (32, [2])]
