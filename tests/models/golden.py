"""Reads the golden Hugging Face models into this project's parameter tree, for tests."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from gkd.models.t5 import T5Config


def read(folder):
    """(T5Config, params, golden arrays) of one folder of golden/hf."""
    raw = json.loads((folder / "config.json").read_text())
    gated = raw["feed_forward_proj"].startswith("gated")
    config = T5Config(
        vocab_size=raw["vocab_size"],
        emb_dim=raw["d_model"],
        num_heads=raw["num_heads"],
        head_dim=raw["d_kv"],
        mlp_dim=raw["d_ff"],
        num_encoder_layers=raw["num_layers"],
        num_decoder_layers=raw["num_decoder_layers"],
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding=raw.get("tie_word_embeddings", True),
        relative_bias_per_layer=raw["model_type"] == "umt5",
    )
    tensors = load_file(folder / "model.safetensors")
    arrays = dict(np.load(folder / "golden.npz"))
    return config, jax.tree.map(jnp.asarray, _params(config, tensors)), arrays


def _params(config, tensors):
    params = {"token_embedder": {"embedding": tensors["shared.weight"]}}
    for side in ("encoder", "decoder"):
        depth = config.num_encoder_layers if side == "encoder" else config.num_decoder_layers
        part = {f"{side}_norm": {"scale": tensors[f"{side}.final_layer_norm.weight"]}}
        for i in range(depth):
            part[f"layers_{i}"] = _layer(config, tensors, side, i)
        if not config.relative_bias_per_layer:
            part["relpos_bias"] = {"rel_embedding": _bias(tensors, side, 0)}
        params[side] = part
    if not config.logits_via_embedding:
        params["decoder"]["logits_dense"] = {"kernel": tensors["lm_head.weight"].T}
    return params


def _bias(tensors, side, i):
    name = f"{side}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
    return tensors[name].T


def _layer(config, tensors, side, i):
    prefix = f"{side}.block.{i}.layer."
    own = "attention" if side == "encoder" else "self_attention"
    blocks = [(own, "SelfAttention", f"pre_{own}_layer_norm")]
    if side == "decoder":
        cross = "encoder_decoder_attention"
        blocks.append((cross, "EncDecAttention", "pre_cross_attention_layer_norm"))
    layer = {}
    for j, (ours, theirs, norm) in enumerate(blocks):
        layer[norm] = {"scale": tensors[f"{prefix}{j}.layer_norm.weight"]}
        layer[ours] = {
            name: {"kernel": tensors[f"{prefix}{j}.{theirs}.{name[0]}.weight"].T}
            for name in ("query", "key", "value", "out")
        }
    last = len(blocks)
    layer["pre_mlp_layer_norm"] = {"scale": tensors[f"{prefix}{last}.layer_norm.weight"]}
    names = ("wi_0", "wi_1", "wo") if len(config.mlp_activations) == 2 else ("wi", "wo")
    layer["mlp"] = {
        name: {"kernel": tensors[f"{prefix}{last}.DenseReluDense.{name}.weight"].T}
        for name in names
    }
    if config.relative_bias_per_layer:
        layer["relpos_bias"] = {"rel_embedding": _bias(tensors, side, i)}
    return layer
