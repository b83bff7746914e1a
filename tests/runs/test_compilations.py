"""Programs compiled, and compiled again, as JAX itself does it."""

import jax
import jax.numpy as jnp

from gkd.runs.compilations import Compilations


def test_a_new_shape_counts_as_again_and_a_known_one_does_not():
    program = jax.jit(lambda x: jnp.sin(x) * 17.25)
    rows = [jnp.zeros(count) for count in (3, 3, 5)]
    counted = Compilations()
    again = []
    for row in rows:
        with counted.of("program"):
            program(row)
        again.append(counted.summary()["recompilations"])
    assert again == [0, 0, 1]
    assert counted.summary()["compilations"] == 2
