"""Parameters of modules: how they begin, and that existing ones are used as they are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from gkd.models.parameters import parameter

TRACED = []


def begin(key, shape, dtype):
    TRACED.append(shape)
    return 1 + jnp.arange(shape[0], dtype=dtype)


class Scaled(nn.Module):
    """x times a vector, which begins as 1, 2, 3, …."""

    size: int

    @nn.compact
    def __call__(self, x):
        return x * parameter(self, "scale", begin, ("embed",), self.size)


def test_a_parameter_begins_as_its_initialiser_says_and_has_its_axes():
    variables = Scaled(3).init(jax.random.PRNGKey(0), jnp.ones(3))
    box = variables["params"]["scale"]
    assert box.names == ("embed",) and box.value.tolist() == [1, 2, 3]
    assert box.value.dtype == np.float32


def test_an_existing_parameter_is_used_and_its_initialiser_is_not_traced():
    TRACED.clear()
    given = {"params": {"scale": jnp.array([4.0, 5.0, 6.0], jnp.bfloat16)}}
    assert jax.jit(Scaled(3).apply)(given, jnp.ones(3)).tolist() == [4, 5, 6]
    assert TRACED == []


def test_another_shape_is_refused():
    with pytest.raises(ScopeParamShapeError, match="scale"):
        Scaled(3).apply({"params": {"scale": jnp.ones(2)}}, jnp.ones(3))
