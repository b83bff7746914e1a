"""A base in Hugging Face's format, and a run of adapters on it, written without training."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gkd.checkpoints import formats, save_hf
from gkd.checkpoints.saved_adapters import SavedAdapters, with_checksums
from gkd.checkpoints.store import CheckpointStore
from gkd.checkpoints.tensors import read_numpy
from gkd.models.lora import LoRA, new_adapters
from gkd.models.t5 import T5Config
from tests.random_params import random_params

CONFIG = T5Config(
    vocab_size=32, emb_dim=16, num_heads=2, head_dim=4, mlp_dim=24, num_encoder_layers=2,
    num_decoder_layers=2,
)  # fmt: skip
SETTINGS = LoRA(rank=3, alpha=12, targets=("query", "decoder/layers_0/mlp/wo"))


def base_params(seed=1, config=CONFIG):
    return random_params(config.build(), seed)


def save_run(tmp_path, lora=SETTINGS, stacked=False, config=CONFIG, ends=None):
    """A base in Hugging Face's format and a run of adapters on it; returns the adapters.

    `ends` are those of the run's vocabulary, where they are not the base's.
    """
    base, run = tmp_path / "base", tmp_path / "runs" / "adapted"
    save_hf(base, config, base_params(config=config))
    model = config.with_execution(stacked_layers=stacked).build()
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    random = np.random.default_rng(2)
    new = functools.partial(new_adapters, boxed, lora)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), jnp.float32),
        nn.meta.unbox(jax.eval_shape(new, jax.random.PRNGKey(3))),
    )
    opened = formats.open_checkpoint(base)
    tensors, checksums = with_checksums(opened.tensors)
    read_numpy(tensors)
    saved = SavedAdapters.of_base(lora, opened, checksums, run)
    bound = opened.config
    if ends is not None:
        bound = bound.with_special_ids(padding=-1, end=ends[0], ends=ends)
    description = {
        "model": bound.describe(),
        "vocabulary": None,
        "adapters": saved.describe(),
    }
    store = CheckpointStore(run / "checkpoints", description=description, asynchronous=False)
    store.save(5, {"params": adapters})
    store.close()
    return run, jax.device_get(adapters)
