"""Translates config.json and parameter names between transformers and gkd for the T5 family."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gkd.errors import InvalidFile, InvalidValue
from gkd.files.json_files import Field, check_fields, shown
from gkd.hugging_face.t5_heads import HEAD, for_hugging_face, read_head
from gkd.models.t5 import T5_FIELDS, T5Config
from gkd.tensor_files.safetensors_files import same_values
from gkd.tensor_files.tensor import Tensor
from gkd.tensor_files.weight_files import TABLES

ARCHITECTURE = T5Config
_CLASSES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
MODEL_TYPES = tuple(_CLASSES)
TABLE, *_COPIES = TABLES
# Early T5 files hold a bias for cross-attention that no T5 has ever used.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_GENERATION = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
# transformers' names -> gkd's; its "gelu" is the exact one, except in "gated-gelu".
_ACTIVATIONS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu_new": "gelu"}
_FIXED = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "emb_dim",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
    "num_layers": "num_encoder_layers",
}
_TEXT = Field(kinds=(str,), most=100, none=True)
_SWITCH = Field(kinds=(bool,), none=True)
_FIELDS = {
    "model_type": Field(kinds=(str,), choices=tuple(_CLASSES), required=True),
    **{name: Field(kinds=(float,), none=True) for name in _FIXED},
    **{name: dataclasses.replace(T5_FIELDS[ours], required=True) for name, ours in _SIZES.items()},
    # 0 means num_layers, as in transformers 4.
    "num_decoder_layers": dataclasses.replace(T5_FIELDS["num_decoder_layers"], least=0, none=True),
    "feed_forward_proj": _TEXT,
    "dense_act_fn": _TEXT,
    "dropout_rate": dataclasses.replace(T5_FIELDS["dropout_rate"], none=True),
    "tie_word_embeddings": _SWITCH,
    "scale_decoder_outputs": _SWITCH,
    "transformers_version": _TEXT,
    "tokenizer_class": _TEXT,
}


def with_model_type(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Adds a missing model_type by the model's class: google/umt5-base was published without one.

    Args:
      raw: the JSON of a config.json.

    >>> with_model_type({"architectures": ["UMT5ForConditionalGeneration"]})["model_type"]
    'umt5'
    """
    families = {name: family for family, name in _CLASSES.items()}
    named = raw.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    family = next((families[name] for name in names if name in families), None)
    if raw.get("model_type") is None and family is not None:
        return {**raw, "model_type": family}
    return dict(raw)


def read(
    raw: Mapping[str, Any], generation: Mapping[str, Any], files: dict[str, Tensor], where: Any
) -> tuple[T5Config, frozenset[str]]:
    """Builds the architecture that a folder describes.

    Args:
      raw: its config.json.
      generation: its generation_config.json, which is not used.
      files: its unread tensors; a table under a copy's name only gets the table's own name.
      where: path of config.json, for messages.

    Returns:
      The architecture with layers not stacked, and the names of tensors that are left out.

    Raises:
      ValueError: the JSON is damaged or describes an unsupported model, or the weights are not
        complete.
    """
    del generation
    check_fields(raw, _FIELDS, where)
    for name, only in _FIXED.items():
        if raw.get(name, only) not in (only, None):
            raise InvalidFile(f"{where}: {name} is {raw[name]}; only {only} is supported")
    _refuse_incomplete(files, raw, where.parent)
    copies, is_own = _copies(files, where.parent)
    return read_config(raw, where, copies, is_own), frozenset({*_COPIES, *copies, _UNUSED})


def read_config(
    raw: Mapping[str, Any], where: Any, copies: Iterable[str], is_own: bool | None
) -> T5Config:
    """Builds the architecture that a config.json describes.

    Args:
      raw: the checked JSON.
      where: path of the file, for messages.
      copies: names of copies of the embedding table in the weights.
      is_own: true if the weights have a head that differs from the table; None without a head.

    Returns:
      The architecture, with layers not stacked.

    Raises:
      ValueError: the file describes an unsupported model.
    """
    family = raw["model_type"]
    tied, scaled = read_head(raw, is_own, where)
    dropout_rate = raw.get("dropout_rate")
    return T5Config(
        **{ours: raw[name] for name, ours in _SIZES.items()},
        num_decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
        mlp_activations=_activations(raw, where),
        logits_via_embedding=tied,
        scale_logits=scaled,
        relative_bias_per_layer=family == "umt5",
        dropout_rate=0.1 if dropout_rate is None else float(dropout_rate),
        family=family,
        embedding_copies=tuple(n for n in copies if tied or n != HEAD),
    )


def _refuse_incomplete(files: Mapping[str, Tensor], raw: Mapping[str, Any], directory: Any) -> None:
    """Refuses weights without a decoder, such as those of transformers' T5EncoderModel.

    And those under other names, such as the checkpoints of training libraries.
    """
    if any(name.startswith("decoder.block.") for name in files):
        return
    if any(name.startswith("encoder.block.") for name in files):
        kind = raw.get("architectures")
        raise InvalidFile(
            f"{directory} holds an encoder without a decoder ({shown(kind)}): take the complete "
            "model (…ForConditionalGeneration)"
        )
    longer = next((name for name in files if re.search(r"\.(en|de)coder\.block\.", name)), None)
    example = longer or next(iter(files), None)
    named = "no tensors" if example is None else f"tensors of other names, e.g. {shown(example)}"
    raise InvalidFile(
        f"{directory} holds {named}: a T5 has encoder.block.0… and decoder.block.0…, as "
        "transformers' `save_pretrained` writes them"
    )


def _copies(files: dict[str, Tensor], directory: Any) -> tuple[tuple[str, ...], bool | None]:
    """Names of copies of the table, and True if the head differs from it (None without a head)."""
    copies = [name for name in _COPIES if name in files]
    if copies and TABLE not in files:  # transformers also accepts a table under such a name only
        files[TABLE] = files[copies.pop(0)]
    for name in copies:
        if not same_values(files[TABLE], files[name]):
            raise InvalidFile(
                f"{directory}: {name} differs from {TABLE}, but a T5 has one table for both"
            )
    if HEAD not in files:
        return tuple(copies), None
    is_own = TABLE not in files or not same_values(files[TABLE], files[HEAD])
    return (*copies, *([] if is_own else [HEAD])), is_own


def _activations(raw: Mapping[str, Any], where: Any) -> tuple[str, ...]:
    default = "relu" if raw["model_type"] == "t5" else "gated-gelu"
    projection = raw.get("feed_forward_proj") or default
    gated, name = projection.startswith("gated-"), projection.removeprefix("gated-")
    name = "gelu_new" if projection == "gated-gelu" else name
    name = raw.get("dense_act_fn") or name
    if name not in _ACTIVATIONS:
        raise InvalidFile(
            f"{where}: activation {shown(name)} ({projection}) is none of {', '.join(_ACTIVATIONS)}"
        )
    return (_ACTIVATIONS[name], "linear") if gated else (_ACTIVATIONS[name],)


def prepare(
    config: T5Config, tensors: Mapping[str, Tensor]
) -> tuple[T5Config, dict[str, Tensor], dict[str, bool]]:
    """Chooses the form of the head that is written, see `t5_heads.for_hugging_face`."""
    return for_hugging_face(config, tensors)


def write_config(
    config: T5Config, head: Mapping[str, bool], dtype: str | None, tokenizer_class: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds config.json and generation_config.json for transformers 4 and 5.

    Args:
      config: the architecture.
      head: fields that describe the head, from `prepare`.
      dtype: dtype of the weights, None if they have several.
      tokenizer_class: 'T5Tokenizer' or 'ByT5Tokenizer', None if unknown.

    Returns:
      The two JSON documents.

    Raises:
      ValueError: transformers has no class for such a T5.
    """
    activation, *gate = config.mlp_activations
    if gate not in ([], ["linear"]) or activation not in _ACTIVATIONS.values():
        raise InvalidValue(f"transformers has no T5 with MLP activations {config.mlp_activations}")
    family = "umt5" if config.relative_bias_per_layer else config.family
    if family == "umt5" and not config.relative_bias_per_layer:
        raise InvalidValue("T5Config.family is 'umt5', whose layers have a relative bias each")
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
        **head,
        "dropout_rate": config.dropout_rate,
        "is_encoder_decoder": True,
        **_FIXED,
    }
    optional = {"torch_dtype": dtype, "tokenizer_class": tokenizer_class}
    raw |= {name: value for name, value in optional.items() if value is not None}
    return raw, {name: raw[name] for name in _GENERATION}


def parameter_names(config: T5Config) -> dict[str, tuple[str, bool]]:
    """Maps gkd's name of every parameter to (transformers' name, is transposed there).

    Args:
      config: the architecture.
    """
    names = {"token_embedder/embedding": (TABLE, False)}
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
    attention = "attention" if side == "encoder" else "self_attention"
    blocks = [(attention, "SelfAttention", f"pre_{attention}_layer_norm")]
    if side == "decoder":
        cross = "encoder_decoder_attention"
        blocks.append((cross, "EncDecAttention", "pre_cross_attention_layer_norm"))
    names = {}
    for j, (attention, block, norm) in enumerate(blocks):
        names[f"{ours}/{norm}/scale"] = (f"{theirs}.{j}.layer_norm.weight", False)
        for kernel in ("query", "key", "value", "out"):
            weight = f"{theirs}.{j}.{block}.{kernel[0]}.weight"
            names[f"{ours}/{attention}/{kernel}/kernel"] = (weight, True)
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
