"""Translates config.json and tensor names of Qwen3, Qwen2.5, Llama 3, SmolLM2 and Gemma 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd.decoders.decoder_only import FAMILIES, DecoderConfig
from gkd.files.json_files import Field, check_fields
from gkd.hugging_face import stacks
from gkd.hugging_face.copies import find_copies
from gkd.tensor_files.tensor import Tensor

MODEL_TYPES = FAMILIES
ARCHITECTURE = DecoderConfig
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_ID = Field(kinds=(int,), least=-1, most=1 << 24, none=True)  # −1: no such token
_FIELDS = {
    "model_type": Field(kinds=(str,), choices=FAMILIES, required=True),
    **stacks.STACK_FIELDS,
    "bos_token_id": _ID,
    "pad_token_id": _ID,
    "eos_token_id": Field(kinds=(int, list), none=True),
}


def read(
    raw: Mapping[str, Any], generation: Mapping[str, Any], files: dict[str, Tensor], where: Any
) -> tuple[DecoderConfig, frozenset[str]]:
    """Builds the architecture that a folder describes.

    Args:
      raw: its config.json.
      generation: its generation_config.json, {} without one.
      files: its unread tensors, to see which are copies of others.
      where: path of config.json, for messages.

    Returns:
      The architecture with layers not stacked, and the names of tensors that are left out.

    Raises:
      ValueError: the JSON is damaged or describes an unsupported model.
    """
    check_fields(raw, _FIELDS, where)
    family = raw["model_type"]
    known, tied = stacks.FAMILIES[family], raw.get("tie_word_embeddings")
    tied = known.tied if tied is None else tied
    ends = generation.get("eos_token_id")
    config = DecoderConfig(
        **stacks.read_stack(raw, family, where),
        **known.constants,
        logits_via_embedding=tied,
        end_ids=stacks.read_ends(raw.get("eos_token_id") if ends is None else ends, where),
        bos_token_id=raw.get("bos_token_id"),
        pad_token_id=raw.get("pad_token_id"),
        context_length=raw.get("max_position_embeddings") or known.context,
        embedding_copies=find_copies(files, TABLE, (HEAD,), where) if tied else (),
        family=family,
    )
    return config, frozenset(config.embedding_copies) | stacks.unused(files)


def prepare(
    config: DecoderConfig, tensors: Mapping[str, Tensor]
) -> tuple[DecoderConfig, dict[str, Tensor], dict[str, Any]]:
    """Returns what is written: these families need no change."""
    return config, dict(tensors), {}


def write_config(
    config: DecoderConfig, head: Mapping[str, Any], dtype: str | None, tokenizer_class: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds config.json and generation_config.json for transformers 4 and 5.

    Args:
      config: the architecture.
      head: nothing.
      dtype: dtype of the weights, None if they have several.
      tokenizer_class: not used; the tokenizer's own files name it.

    Returns:
      The two JSON documents.

    Raises:
      InvalidValue: config.json of the family cannot describe the architecture.
    """
    del head, tokenizer_class
    ends = config.end_ids[0] if len(config.end_ids) == 1 else list(config.end_ids)
    ids = {
        "bos_token_id": stacks.written_id(config.bos_token_id, config.vocab_size),
        "eos_token_id": ends,
        "pad_token_id": stacks.written_id(config.pad_token_id, config.vocab_size),
    }
    raw = {
        "architectures": [_CLASSES[config.family]],
        "model_type": config.family,
        **stacks.write_stack(config),
        "tie_word_embeddings": config.logits_via_embedding,
        "max_position_embeddings": config.context_length,
        "attention_bias": False,
        "attention_dropout": 0.0,
        **ids,
    }
    if config.family == "llama":
        raw["mlp_bias"] = False
    if config.family == "gemma3_text":
        raw["hidden_activation"] = raw.pop("hidden_act")
        raw["use_bidirectional_attention"] = False
        raw["rope_local_base_freq"] = float((config.local_rope or config.rope).theta)
    if dtype is not None:
        raw["torch_dtype"] = dtype
    stacks.check_written(config, read(raw, ids, {}, "config.json")[0])
    return raw, ids


def parameter_names(config: DecoderConfig) -> dict[str, tuple[str, bool]]:
    """Maps gkd's name of every parameter to (transformers' name, is transposed there).

    Args:
      config: the architecture.
    """
    names = {
        "token_embedder/embedding": (TABLE, False),
        "decoder/decoder_norm/scale": ("model.norm.weight", False),
    }
    if not config.logits_via_embedding:
        names["decoder/logits_dense/kernel"] = (HEAD, True)
    before_mlp = "pre_feedforward" if config.post_norms else "post_attention"
    norms = {"pre_self_attention": "input", "pre_mlp": before_mlp}
    if config.post_norms:
        norms |= {"post_self_attention": "post_attention", "post_mlp": "post_feedforward"}
    for i in range(config.num_layers):
        names.update(stacks.layer_names(config, f"decoder/layers_{i}", f"model.layers.{i}", norms))
    return names
