"""Tiny decoder-only models with random parameters that make attention uneven."""

import flax.linen as nn
import jax
import numpy as np

from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.rotary import Rope

TINY = DecoderConfig(
    vocab_size=40, emb_dim=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20, num_layers=2,
    rope=Rope(100.0), qk_norms=False, end_ids=(1, 5),
)  # fmt: skip
# Everything that Gemma and Qwen2 have besides.
PATTERNED = DecoderConfig(
    vocab_size=40, emb_dim=16, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20, num_layers=3,
    rope=Rope(100.0), local_rope=Rope(10.0), layer_windows=(3, 0), qk_norms=True, post_norms=True,
    unit_offset_norms=True, attention_biases=True, scale_embeddings=True, query_scale=5,
    attention_soft_cap=2.0, logits_soft_cap=3.0, mlp_activation="gelu", end_ids=(1,),
)  # fmt: skip


def parameters_of(config, seed=0):
    """Random parameters, a few times as large as those that training starts from."""
    params = nn.meta.unbox(config.build().init(jax.random.PRNGKey(seed)))
    rng = np.random.default_rng(seed)

    def enlarged(leaf):
        return leaf + (0.4 if leaf.ndim > 1 else 0.1) * rng.normal(size=leaf.shape).astype(
            "float32"
        )

    return jax.tree.map(enlarged, params)
