"""The number of times that loops run."""

import jax
import jax.numpy as jnp
import pytest

from gkd.program_cost.program_cost import program_cost
from tests.program_cost.programs import scan, text_of, without_counts

pytestmark = pytest.mark.usefixtures("optimized")


def nested(x, kernels):
    def outer(carry):
        return carry[0] + 3, scan(carry[1], kernels)

    return jax.lax.while_loop(lambda carry: carry[0] <= 20, outer, (5, x))[1]  # 5, 8, … 20


@pytest.mark.parametrize(("function", "trips"), [(scan, [5]), (nested, [6, 5])])
def test_loops_count_as_often_as_they_run(function, trips):
    text = text_of(function, (4, 16), (5, 16, 16))
    products = 5 if function is scan else 30
    for one in (text, without_counts(text)):
        cost = program_cost(one)
        assert [loop.trips for loop in cost.loops] == trips
        assert not any(loop.stops_early for loop in cost.loops)
        assert cost.flops == products * 2 * 4 * 16 * 16
        assert {part.loop for part in cost.parts if part.flops} == {cost.loops[-1].source}


def sampling_loop(x, kernel):
    def unfinished(carry):
        step, x = carry
        return (step < 40) & ~jnp.all(x > 3)

    return jax.lax.while_loop(unfinished, lambda c: (c[0] + 1, c[1] @ kernel), (0, x))[1]


def test_a_loop_that_may_stop_early_counts_its_bound_or_what_is_expected_of_it():
    text = text_of(sampling_loop, (4, 16), (16, 16))
    cost = program_cost(text)
    (loop,) = cost.loops
    assert (loop.bound, loop.stops_early, loop.trips) == (40, True, 40)
    assert cost.flops == 40 * 2 * 4 * 16 * 16
    assert program_cost(text, expected_share=0.25).flops == 10 * 2 * 4 * 16 * 16
    by_loop = program_cost(text, expected_share=lambda loop: 30 / loop.bound)
    assert by_loop.flops == 30 * 2 * 4 * 16 * 16


def test_the_tightest_of_two_counts_is_the_bound():
    def both(x):
        unfinished = lambda carry: (carry[0] < 40) & (carry[0] + 1 < 21)  # noqa: E731
        return jax.lax.while_loop(unfinished, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x))[1]

    (loop,) = program_cost(text_of(both, (4, 4))).loops
    assert (loop.trips, loop.stops_early) == (20, False)


def test_a_loop_whose_trips_cannot_be_read_is_refused():
    def grows(x, limit):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < limit[0], lambda x: x @ x, x)

    text = text_of(grows, (4, 4), (1,))
    with pytest.raises(ValueError, match=r"the loop while\S* .* cannot be read .* default_trips"):
        program_cost(text)
    assert program_cost(text, default_trips=3).flops == 3 * 2 * 4**3
