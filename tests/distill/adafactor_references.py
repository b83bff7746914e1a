"""Adafactor in float64, and the parameters of T5X's golden steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorstore


def steps(optimizer, params, gradients):
    """Parameters after one step for each tree of gradients."""
    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = update(params, state, gradient)
    return params


def t5x_parameter(folder, step, path):
    """One parameter of a T5X checkpoint."""
    path = folder / f"checkpoint_{step}" / f"target.{path.replace('/', '.')}"
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec).result().read().result()


def adafactor_in_float64(params, gradients, learning_rates, factored, decay_rate=0.8, clip=1.0):
    """Shazeer & Stern 2018, algorithms 4 to 6, with relative step sizes."""
    p = np.float64(params)
    row = column = full = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, learning_rates, strict=True), start=1):
        decay, square = 1 - t**-decay_rate, np.float64(gradient) ** 2 + 1e-30
        row = decay * row + (1 - decay) * square.mean(axis=-1)
        column = decay * column + (1 - decay) * square.mean(axis=0)
        full = decay * full + (1 - decay) * square
        second_moment = np.outer(row, column) / row.mean() if factored else full
        update = gradient / np.sqrt(second_moment)
        update /= max(1.0, np.sqrt((update**2).mean()) / clip)
        p = p - rate * max(1e-3, np.sqrt((p**2).mean())) * update
    return p
