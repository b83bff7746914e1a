"""Small random T5X checkpoints for tests."""

import flax.linen as nn
import jax
import numpy as np
from flax import serialization

from gkd.models import t5

TINY = t5.T5Config(
    vocab_size=24, emb_dim=8, num_heads=3, head_dim=2, mlp_dim=10, num_encoder_layers=1,
    num_decoder_layers=2,
)  # fmt: skip


def random_params(config, dtype=np.float32, seed=0):
    """Parameters of an architecture, every value drawn."""
    shapes = nn.meta.unbox(jax.eval_shape(t5.as_seq2seq(config).init, jax.random.PRNGKey(0)))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(dtype), shapes)


def write_inline(folder, target, state=None, top=False):
    """A checkpoint as Flax writes it: every array inside the msgpack file."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"target": target, "state": state or {"step": np.int32(3)}}
    tree = body if top else {"version": 3, "optimizer": body}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    return folder
