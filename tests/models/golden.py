"""Reads the golden Hugging Face models, for tests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gkd.checkpoints import load_hf


def read(folder):
    """(T5Config without dropout, params, golden arrays) of one folder of golden/hf."""
    config, params = load_hf(folder)
    arrays = dict(np.load(folder / "golden.npz"))
    return dataclasses.replace(config, dropout_rate=0.0), jax.tree.map(jnp.asarray, params), arrays


FAMILIES = ["t5v10_tiny", "t5v11_tiny", "mt5_tiny", "umt5_tiny"]
