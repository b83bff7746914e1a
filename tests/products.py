"""Counts the multiplications of a traced function's matrix products, from its jaxpr."""

import jax
import jax.extend
import numpy as np


def products(function, *arguments, loop_trips=None):
    """Multiplications of one evaluation: loops by their length, a condition's dearest branch.

    Args:
      function, arguments: function to trace, and its arguments.
      loop_trips: number of trips of every `while`; None refuses loops.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, loop_trips)


def _count(jaxpr, trips):
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * np.prod([shape[i] for i in contracted])
        inner = [_count(part, trips) for part in jax.extend.core.jaxprs_in_params(equation.params)]
        if name == "cond":
            total += max(inner)
        elif name == "while":
            assert trips is not None or not any(inner)
            total += sum(inner) * (trips or 0)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total
