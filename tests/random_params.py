"""Random parameters of a model, drawn by NumPy: the program of `init` takes seconds to compile."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def random_params(model, seed=0):
    """Kernels and tables of fan-in variance, scales of norms that are 1, as `init` has them."""
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0)))
    random = np.random.default_rng(seed)

    def drawn(path, leaf):
        if path[-1].key == "scale":
            return jnp.asarray(np.ones(leaf.shape), leaf.dtype)
        values = random.normal(size=leaf.shape) / np.sqrt(leaf.shape[-2])
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)
