"""Tiny Hugging Face models with a tied head or one of their own, and their logits."""

import jax
import jax.numpy as jnp
import numpy as np

from gkd.checkpoints.tensors import nest
from gkd.models.t5 import T5, T5Config


def logits_of(config, params, inputs, outputs):
    tokens = jnp.asarray(inputs, jnp.int32), jnp.asarray(outputs, jnp.int32)
    params = jax.tree.map(jnp.asarray, params)
    return np.asarray(jax.jit(T5(config).apply)({"params": params}, *tokens))


def model_of(family, tied, scaled):
    """A small model of a family ('t5relu' is T5 1.0), with norms that are not 1."""
    config = T5Config(
        vocab_size=50, emb_dim=24, num_heads=3, head_dim=5, mlp_dim=40, num_encoder_layers=1,
        num_decoder_layers=2, logits_via_embedding=tied, scale_logits=scaled,
        mlp_activations=("relu",) if family == "t5relu" else ("gelu", "linear"),
        relative_bias_per_layer=family == "umt5", family=family.removesuffix("relu"),
    )  # fmt: skip
    rng = np.random.default_rng(3)
    shapes = config.parameter_shapes()
    scales = {name: 1.0 if "embedding" in name else 24**-0.5 for name in shapes}
    return config, nest(
        {name: np.float32(rng.normal(size=shape) * scales[name]) for name, shape in shapes.items()}
    )
