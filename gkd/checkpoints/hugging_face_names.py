"""Hugging Face's names for T5: config.json and parameter names, theirs and ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gkd.models.t5 import T5Config

_CLASSES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
# transformers' names -> ours; its "gelu" is the exact one, except in "gated-gelu".
_ACTIVATIONS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu_new": "gelu"}
_FIXED = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def read_config(raw: Mapping[str, Any], where: Any, copies: Iterable[str]) -> T5Config:
    """The architecture that a config.json describes.

    Args:
      raw: the JSON.
      where: the file, for messages.
      copies: names under which the weights hold the embedding table again.

    Raises:
      ValueError: it describes what this T5 cannot be, in one line.
    """
    family = raw.get("model_type")
    if family not in _CLASSES:
        raise ValueError(f"{where}: model_type {family!r} is none of {', '.join(_CLASSES)}")
    for name, only in _FIXED.items():
        if raw.get(name, only) not in (only, None):
            raise ValueError(f"{where}: {name} is {raw[name]}; only {only} is supported")
    sizes = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    absent = [name for name in sizes if type(raw.get(name)) is not int or raw[name] < 1]
    if absent:
        raise ValueError(f"{where}: {absent[0]} is {raw.get(absent[0])!r}, not a positive integer")
    tied = raw.get("tie_word_embeddings", family == "t5")
    return T5Config(
        vocab_size=raw["vocab_size"],
        emb_dim=raw["d_model"],
        num_heads=raw["num_heads"],
        head_dim=raw["d_kv"],
        mlp_dim=raw["d_ff"],
        num_encoder_layers=raw["num_layers"],
        num_decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
        mlp_activations=_activations(raw, where),
        logits_via_embedding=tied,
        relative_bias_per_layer=family == "umt5",
        dropout_rate=float(raw.get("dropout_rate", 0.1)),
        family=family,
        embedding_copies=tuple(n for n in copies if tied or n != "lm_head.weight"),
    )


def _activations(raw: Mapping[str, Any], where: Any) -> tuple[str, ...]:
    default = "relu" if raw["model_type"] == "t5" else "gated-gelu"
    projection = raw.get("feed_forward_proj", default)
    gated, name = projection.startswith("gated-"), projection.removeprefix("gated-")
    name = "gelu_new" if projection == "gated-gelu" else name
    name = raw.get("dense_act_fn") or name
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"{where}: activation {name!r} ({projection}) is none of {', '.join(_ACTIVATIONS)}"
        )
    return (_ACTIVATIONS[name], "linear") if gated else (_ACTIVATIONS[name],)


def write_config(
    config: T5Config, dtype: str | None, tokenizer_class: str | None
) -> dict[str, Any]:
    """The config.json of an architecture, as transformers 4 writes it.

    Args:
      config: the architecture.
      dtype: of the weights, where they have one.
      tokenizer_class: 'T5Tokenizer' or 'ByT5Tokenizer', where it is known.

    Raises:
      ValueError: transformers has no class for such a T5.
    """
    activation, *gate = config.mlp_activations
    if gate not in ([], ["linear"]) or activation not in _ACTIVATIONS.values():
        raise ValueError(f"transformers has no T5 with MLP activations {config.mlp_activations}")
    family = "umt5" if config.relative_bias_per_layer else config.family
    if family == "umt5" and not config.relative_bias_per_layer:
        raise ValueError("T5Config.family is 'umt5', whose layers have a relative bias each")
    if config.relative_bias_per_layer and config.logits_via_embedding:
        raise ValueError("transformers has no umT5 with a tied head")
    theirs = "gelu_new" if activation == "gelu" else activation
    projection = f"gated-{activation}" if gate else theirs
    raw = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": projection,
        "dense_act_fn": theirs,
        "is_gated_act": bool(gate),
        "tie_word_embeddings": config.logits_via_embedding,
        "dropout_rate": config.dropout_rate,
        "is_encoder_decoder": True,
        **_FIXED,
    }
    optional = {"torch_dtype": dtype, "tokenizer_class": tokenizer_class}
    return {**raw, **{name: value for name, value in optional.items() if value is not None}}


def parameter_names(config: T5Config) -> dict[str, tuple[str, bool]]:
    """Our name of every parameter -> (transformers' name, whether it is transposed there)."""
    names = {"token_embedder/embedding": ("shared.weight", False)}
    if not config.logits_via_embedding:
        names["decoder/logits_dense/kernel"] = ("lm_head.weight", True)
    sides = ("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)
    for side, depth in sides:
        names[f"{side}/{side}_norm/scale"] = (f"{side}.final_layer_norm.weight", False)
        for i in range(depth):
            names.update(_layer_names(config, side, i))
    return names


def _layer_names(config: T5Config, side: str, i: int) -> dict[str, tuple[str, bool]]:
    ours, theirs = f"{side}/layers_{i}", f"{side}.block.{i}.layer"
    own = "attention" if side == "encoder" else "self_attention"
    blocks = [(own, "SelfAttention", f"pre_{own}_layer_norm")]
    if side == "decoder":
        cross = "encoder_decoder_attention"
        blocks.append((cross, "EncDecAttention", "pre_cross_attention_layer_norm"))
    names = {}
    for j, (part, block, norm) in enumerate(blocks):
        names[f"{ours}/{norm}/scale"] = (f"{theirs}.{j}.layer_norm.weight", False)
        for kernel in ("query", "key", "value", "out"):
            weight = f"{theirs}.{j}.{block}.{kernel[0]}.weight"
            names[f"{ours}/{part}/{kernel}/kernel"] = (weight, True)
    j = len(blocks)
    names[f"{ours}/pre_mlp_layer_norm/scale"] = (f"{theirs}.{j}.layer_norm.weight", False)
    gated = len(config.mlp_activations) == 2
    for kernel in ("wi_0", "wi_1", "wo") if gated else ("wi", "wo"):
        weight = f"{theirs}.{j}.DenseReluDense.{kernel}.weight"
        names[f"{ours}/mlp/{kernel}/kernel"] = (weight, True)
    if config.relative_bias_per_layer or i == 0:
        place = f"{ours}/relpos_bias" if config.relative_bias_per_layer else f"{side}/relpos_bias"
        weight = f"{theirs}.0.SelfAttention.relative_attention_bias.weight"
        names[f"{place}/rel_embedding"] = (weight, True)
    return names
