"""Translates config.json and tensor names of T5Gemma and T5Gemma 2, whose images are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.errors import InvalidFile
from gkd.files.json_files import Field, check_fields
from gkd.hugging_face import stacks
from gkd.hugging_face.copies import find_copies
from gkd.tensor_files.tensor import Tensor

MODEL_TYPES = ("t5gemma", "t5gemma2")
ARCHITECTURE = T5GemmaConfig
HEAD = "lm_head.out_proj.weight"
_DECODERS, _ENCODERS = (f"model.{side}.embed_tokens.weight" for side in ("decoder", "encoder"))
_OF_IMAGES = (
    "model.encoder.vision_tower.",
    "model.encoder.multi_modal_projector.",
    "model.encoder.embed_tokens.eoi_embedding",
    "model.decoder.embed_tokens.eoi_embedding",
)
# transformers builds a model of images whatever the file holds.
_SMALLEST_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 224,
    "patch_size": 14,
    "vision_use_head": False,
}
_ID = Field(kinds=(int,), least=0, most=1 << 24, none=True)
_STACK = Field(kinds=(dict,), required=True)
_FIELDS = {
    "model_type": Field(kinds=(str,), choices=MODEL_TYPES, required=True),
    "encoder": _STACK,
    "decoder": _STACK,
    "tie_word_embeddings": Field(kinds=(bool,), none=True),
    "bos_token_id": _ID,
    "pad_token_id": dataclasses.replace(_ID, least=-1),
    "decoder_start_token_id": _ID,
    "eos_token_id": Field(kinds=(int, list), none=True),
}
_NORMS = {
    "pre_self_attention": "pre_self_attn",
    "post_self_attention": "post_self_attn",
    "pre_mlp": "pre_feedforward",
    "post_mlp": "post_feedforward",
}
_CROSS_NORMS = {
    "pre_cross_attention": "pre_cross_attn",
    "post_cross_attention": "post_cross_attn",
}


def read(
    raw: Mapping[str, Any], generation: Mapping[str, Any], files: dict[str, Tensor], where: Any
) -> tuple[T5GemmaConfig, frozenset[str]]:
    """Builds the architecture that a folder describes, see `decoder_only.read`."""
    check_fields(raw, _FIELDS, where)
    family = raw["model_type"]
    if family == "t5gemma2":
        check_fields(raw["encoder"], {"text_config": _STACK}, f"{where}: encoder")
        raw = {**raw, "encoder": raw["encoder"]["text_config"]}
    for side in ("encoder", "decoder"):
        check_fields(raw[side], stacks.STACK_FIELDS, f"{where}: {side}")
    ends = generation.get("eos_token_id")
    ends = raw.get("eos_token_id") if ends is None else ends
    ends = raw["decoder"].get("eos_token_id") if ends is None else ends
    tied = raw.get("tie_word_embeddings") is not False
    begin = raw.get("bos_token_id")
    begin = raw["decoder"].get("bos_token_id") if begin is None else begin
    start = raw.get("decoder_start_token_id")
    start = begin if start is None else start
    if start is None:
        raise InvalidFile(f"{where} has no bos_token_id, with which the decoder starts")
    known = stacks.FAMILIES[family]
    common = {
        **known.constants,
        "logits_via_embedding": tied,
        "end_ids": stacks.read_ends(ends, where),
        "bos_token_id": begin,
        "pad_token_id": raw.get("pad_token_id"),
        "family": family,
    }
    encoder, decoder = (
        {
            **stacks.read_stack(raw[side], family, f"{where}: {side}"),
            **common,
            "context_length": raw[side].get("max_position_embeddings") or known.context,
        }
        for side in ("encoder", "decoder")
    )
    version = 1 + (family == "t5gemma2")
    table, copies = (_DECODERS, (HEAD,)) if version == 1 else (_ENCODERS, (_DECODERS, HEAD))
    decoder["embedding_copies"] = find_copies(files, table, copies, where) if tied else ()
    encoder["logits_soft_cap"] = None
    sides = stacks.DecoderConfig(**encoder), stacks.DecoderConfig(**decoder)
    config = T5GemmaConfig(*sides, start_id=start, version=version)
    of_images = frozenset(n for n in files if version == 2 and n.startswith(_OF_IMAGES))
    return config, frozenset(config.embedding_copies) | stacks.unused(files) | of_images


def prepare(
    config: T5GemmaConfig, tensors: Mapping[str, Tensor]
) -> tuple[T5GemmaConfig, dict[str, Tensor], dict[str, Any]]:
    """Returns what is written: this family needs no change."""
    return config, dict(tensors), {}


def write_config(
    config: T5GemmaConfig, head: Mapping[str, Any], dtype: str | None, tokenizer_class: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Builds config.json and generation_config.json, see `decoder_only.write_config`."""
    del head, tokenizer_class
    decoder = config.decoder
    ends = decoder.end_ids[0] if len(decoder.end_ids) == 1 else list(decoder.end_ids)
    ids = {
        "bos_token_id": stacks.written_id(decoder.bos_token_id, config.vocab_size),
        "eos_token_id": ends,
        "pad_token_id": stacks.written_id(decoder.pad_token_id, config.vocab_size),
    }
    tied, name = decoder.logits_via_embedding, {1: "t5gemma", 2: "t5gemma2"}[config.version]
    sides = {}
    for side, stack in (("encoder", config.encoder), ("decoder", decoder)):
        cap = decoder.logits_soft_cap
        own = stacks.write_stack(dataclasses.replace(stack, logits_soft_cap=cap, family=name))
        own["hidden_activation"] = own.pop("hidden_act")
        own.pop("use_sliding_window", None)
        sides[side] = {
            "model_type": "t5_gemma_module",
            **own,
            **ids,
            "is_decoder": side == "decoder",
            "tie_word_embeddings": tied,
            "max_position_embeddings": stack.context_length,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dropout_rate": 0.0,
        }
    if config.version == 2:
        sides = _of_version_2(config, sides)
    else:
        sides["decoder"]["cross_attention_hidden_size"] = config.encoder.emb_dim
    raw = {
        "architectures": [f"T5Gemma{name[7:]}ForConditionalGeneration"],
        "model_type": name,
        "is_encoder_decoder": True,
        **sides,
        **ids,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "dropout_rate": 0.0,
        "decoder_start_token_id": config.start_id,
    }
    if dtype is not None:
        raw["torch_dtype"] = dtype
    generation = {"decoder_start_token_id": config.start_id, **ids}
    found, _ = read(raw, generation, {}, "config.json")
    for stack, other in ((config.encoder, found.encoder), (decoder, found.decoder)):
        cap = None if stack is config.encoder else stack.logits_soft_cap
        stacks.check_written(dataclasses.replace(stack, logits_soft_cap=cap), other)
    return raw, generation


def _of_version_2(config, sides):
    """The two stacks in T5Gemma 2's form: the encoder's beside a model of images."""
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        own = sides[side]
        own.pop("is_decoder")
        scaling, theta = own.pop("rope_scaling") or {}, own.pop("rope_theta")
        own["rope_parameters"] = {
            "full_attention": {"rope_type": "default", **scaling, "rope_theta": theta},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": float((stack.local_rope or stack.rope).theta),
            },
        }
    sides["encoder"]["model_type"] = "t5gemma2_text"
    sides["decoder"]["model_type"] = "t5gemma2_decoder"
    encoder = {
        "model_type": "t5gemma2_encoder",
        "text_config": sides["encoder"],
        "vision_config": _SMALLEST_VISION,
    }
    return {"encoder": encoder, "decoder": sides["decoder"]}


def parameter_names(config: T5GemmaConfig) -> dict[str, tuple[str, bool]]:
    """Maps gkd's name of every parameter to (transformers' name, is transposed there).

    Args:
      config: the architecture.
    """
    names = {
        "token_embedder/embedding": (_DECODERS, False),
        "encoder/token_embedder/embedding": (_ENCODERS, False),
        "encoder/encoder_norm/scale": ("model.encoder.norm.weight", False),
        "decoder/decoder_norm/scale": ("model.decoder.norm.weight", False),
    }
    if config.version == 2:
        names["token_embedder/embedding"] = names.pop("encoder/token_embedder/embedding")
    if not config.decoder.logits_via_embedding:
        names["decoder/logits_dense/kernel"] = (HEAD, True)
    attentions = {"self_attention": "self_attn", "encoder_decoder_attention": "cross_attn"}
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        for i in range(stack.num_layers):
            place = f"{side}/layers_{i}", f"model.{side}.layers.{i}"
            if side == "encoder" or config.version == 2:
                names.update(stacks.layer_names(stack, *place, _NORMS))
            else:
                norms = {**_NORMS, **_CROSS_NORMS}
                names.update(stacks.layer_names(stack, *place, norms, attentions))
    return names
