"""The projection of hidden states by the head."""

import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models.interface import Head, head_for_loop, project, project_token


@pytest.mark.parametrize("transposed, scale", [(True, 0.5), (False, 1.0), (False, 0.25)])
def test_logits_of_a_token_are_the_scaled_product(transposed, scale):
    random = np.random.default_rng(0)
    hidden, kernel = (random.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4, 5)))
    stored = jnp.asarray(kernel.T if transposed else kernel)
    head = Head(stored, scale=scale, transposed=transposed)
    wanted = scale * np.float64(hidden) @ np.float64(kernel)
    np.testing.assert_allclose(project(jnp.asarray(hidden), head), wanted, rtol=1e-5)
    loop = head_for_loop(head, jnp.float32)
    np.testing.assert_allclose(project_token(jnp.asarray(hidden), loop), wanted, rtol=1e-5)
