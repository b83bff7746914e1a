"""Translates a stack of layers with rotary positions: its sizes, positions, windows and names.

The JSON is read in the forms of transformers 4 (`rope_theta`, `rope_scaling`) and 5
(`rope_parameters`), and written in that of 4, which both versions read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gkd.decoders.decoder_only import DECODER_FIELDS, DecoderConfig, shortest_pattern
from gkd.decoders.rotary import Rope
from gkd.errors import InvalidFile, InvalidValue
from gkd.files.json_files import Field, check_fields, shown
from gkd.models.architecture import EXECUTION_FIELDS

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "emb_dim",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "num_layers",
}
_COUNT = Field(kinds=(int,), least=1, most=1 << 30, none=True)
_NUMBER = Field(kinds=(float,), above=0, most=1e12, none=True)
_SWITCH = Field(kinds=(bool,), none=True)
_TEXT = Field(kinds=(str,), most=100, none=True)
ROPE_FIELDS = {
    "rope_type": _TEXT,
    "type": _TEXT,
    "rope_theta": _NUMBER,
    "factor": _NUMBER,
    "low_freq_factor": _NUMBER,
    "high_freq_factor": _NUMBER,
    "original_max_position_embeddings": _COUNT,
}
STACK_FIELDS = {
    **{name: dataclasses.replace(DECODER_FIELDS[o], required=True) for name, o in _SIZES.items()},
    "num_key_value_heads": dataclasses.replace(DECODER_FIELDS["num_kv_heads"], none=True),
    "head_dim": dataclasses.replace(DECODER_FIELDS["head_dim"], none=True),
    "hidden_act": _TEXT,
    "hidden_activation": _TEXT,
    "rms_norm_eps": dataclasses.replace(DECODER_FIELDS["norm_epsilon"], none=True),
    "rope_theta": _NUMBER,
    "rope_local_base_freq": _NUMBER,
    "rope_scaling": Field(kinds=(dict,), none=True),
    "rope_parameters": Field(kinds=(dict,), none=True),
    "query_pre_attn_scalar": _NUMBER,
    "attn_logit_softcapping": _NUMBER,
    "final_logit_softcapping": _NUMBER,
    "sliding_window": _COUNT,
    "sliding_window_pattern": _COUNT,
    "_sliding_window_pattern": _COUNT,
    "layer_types": Field(kinds=(list,), most=1 << 10, none=True),
    "use_sliding_window": _SWITCH,
    "max_window_layers": dataclasses.replace(_COUNT, least=0),
    "tie_word_embeddings": _SWITCH,
    "max_position_embeddings": _COUNT,
    "attention_bias": _SWITCH,
    "mlp_bias": _SWITCH,
    "use_bidirectional_attention": _SWITCH,
}
_KINDS = ("full_attention", "sliding_attention")


@dataclasses.dataclass(frozen=True)
class Family:
    """Values that config.json leaves out: constants of a family, and defaults of transformers."""

    tied: bool
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    theta: float = 10000.0
    context: int = 32768
    activation: str = "silu"
    query_scale: int | None = None
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# The families whose configurations have soft caps and a query scale.
_SCALED = ("gemma3_text", "t5gemma", "t5gemma2")
_TWO_ROPES = ("gemma3_text", "t5gemma2")  # by default; every sixth layer sees everything
_NONE = {"qk_norms": False}
_GEMMA = {"unit_offset_norms": True, "post_norms": True, "scale_embeddings": True}
FAMILIES = {
    "qwen3": Family(False, 128, constants={"qk_norms": True}),
    "qwen2": Family(False, constants={"qk_norms": False, "attention_biases": True}),
    "llama": Family(False, context=2048, constants=_NONE),
    "gemma3_text": Family(
        True, 256, 1e6, 131072, "gelu_pytorch_tanh", 256, {**_GEMMA, "qk_norms": True}
    ),
    "t5gemma2": Family(
        True, 256, 1e6, 131072, "gelu_pytorch_tanh", 256, {**_GEMMA, "qk_norms": True}
    ),
    "t5gemma": Family(
        True, 256, 1e4, 8192, "gelu_pytorch_tanh", 256, {**_GEMMA, "qk_norms": False}
    ),
}


def read_ends(ends: Any, where: Any) -> tuple[int, ...]:
    """Returns the ids that end an output: a number, or a list of them.

    Raises:
      ValueError: there are none, or they are no ids.
    """
    ids = ends if isinstance(ends, list) else [ends]
    if not ids or not all(type(each) is int and 0 <= each < 1 << 24 for each in ids):
        raise InvalidFile(f"{where}: eos_token_id is {shown(ends)}: one id or a list is needed")
    return tuple(dict.fromkeys(ids))


def read_stack(raw: Mapping[str, Any], family: str, where: Any) -> dict[str, Any]:
    """Reads the sizes, positions and windows of a stack of layers.

    Args:
      raw: checked JSON with `STACK_FIELDS`.
      family: one of the families whose defaults apply.
      where: path of the file, for messages.

    Returns:
      Arguments of `DecoderConfig`.
    """
    known = FAMILIES[family]
    for name in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if raw.get(name):
            raise InvalidFile(f"{where}: {name} is true; only false is supported")
    activation = raw.get("hidden_activation") or raw.get("hidden_act")
    activation = activation or known.activation
    if activation not in _ACTIVATIONS:
        raise InvalidFile(
            f"{where}: activation {shown(activation)} is none of {', '.join(_ACTIVATIONS)}"
        )
    rope, local = _ropes(raw, family, where)
    heads = raw["num_attention_heads"]
    scaled = raw if family in _SCALED else {}  # other families ignore these fields
    return {
        **{ours: raw[name] for name, ours in _SIZES.items()},
        "num_kv_heads": raw.get("num_key_value_heads") or heads,
        "head_dim": raw.get("head_dim") or known.head_dim or raw["hidden_size"] // heads,
        "mlp_activation": _ACTIVATIONS[activation],
        "norm_epsilon": raw.get("rms_norm_eps") or 1e-6,
        "query_scale": scaled.get("query_pre_attn_scalar") or known.query_scale,
        "attention_soft_cap": scaled.get("attn_logit_softcapping"),
        "logits_soft_cap": scaled.get("final_logit_softcapping"),
        "rope": rope,
        "local_rope": local,
        "layer_windows": _windows(raw, family, where),
    }


def _ropes(raw, family, where) -> tuple[Rope, Rope | None]:
    """Positions of layers that see everything, and of those with a window where they differ."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = raw.get("rope_theta") or FAMILIES[family].theta
    if not any(kind in given for kind in _KINDS):
        if family not in _TWO_ROPES:
            return _rope(given, theta, where), None
        given = {"full_attention": given, "sliding_attention": {}}
    full, local = (given.get(kind) for kind in _KINDS)
    for kind, each in zip(_KINDS, (full, local), strict=True):
        if not isinstance(each, dict):
            raise InvalidFile(f"{where}: rope_parameters has {shown(each)} for {kind}")
    near = raw.get("rope_local_base_freq") or 10000.0
    ropes = _rope(full, theta, where), _rope(local, near, where)
    return ropes[0], None if ropes[0] == ropes[1] else ropes[1]


def _rope(given: Mapping[str, Any], theta: float | int, where: Any) -> Rope:
    check_fields(given, ROPE_FIELDS, f"{where}: rope")
    kind = given.get("rope_type") or given.get("type") or "default"
    theta = given.get("rope_theta") or theta
    if kind == "default":
        return Rope(theta)
    if kind not in ("linear", "llama3") or given.get("factor") is None:
        raise InvalidFile(
            f"{where}: rope type {shown(kind)} with factor {shown(given.get('factor'))}; supported "
            "are default, and linear and llama3 with a factor"
        )
    if kind == "linear":
        return Rope(theta, given["factor"])
    names = ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    missing = [name for name in names if given.get(name) is None]
    if missing or given["low_freq_factor"] >= given["high_freq_factor"]:
        raise InvalidFile(
            f"{where}: rope type llama3 needs {', '.join(names)}, the last above the second"
        )
    return Rope(theta, given["factor"], *(given[name] for name in names))


def _windows(raw, family, where) -> tuple[int, ...]:
    """The shortest pattern of windows that repeats over the layers."""
    depth, window = raw["num_hidden_layers"], raw.get("sliding_window")
    kinds = raw.get("layer_types")
    if family in _SCALED:
        window = window or 4096
    if kinds is None and family in _SCALED:
        every = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern")
        every = every or (6 if family in _TWO_ROPES else 2)
        kinds = [_KINDS[(i + 1) % every > 0] for i in range(depth)]
    elif kinds is None and raw.get("use_sliding_window") and window:
        first = raw.get("max_window_layers")
        first = 28 if first is None else first
        kinds = [_KINDS[i >= first] for i in range(depth)]
    elif kinds is None:
        return (0,)
    if len(kinds) != depth or not all(kind in _KINDS for kind in kinds):
        raise InvalidFile(f"{where}: layer_types needs {depth} of {_KINDS[0]} and {_KINDS[1]}")
    if _KINDS[1] not in kinds:
        return (0,)
    if window is None:
        raise InvalidFile(f"{where}: layer_types has {_KINDS[1]}, but there is no sliding_window")
    windows = [window if kind == _KINDS[1] else 0 for kind in kinds]
    return shortest_pattern(windows)


def write_stack(config: DecoderConfig) -> dict[str, Any]:
    """Inverts `read_stack`."""
    theirs = {"silu": "silu", "gelu": "gelu_pytorch_tanh"}[config.mlp_activation]
    rope, scaling = config.rope, None
    if rope.factor != 1 or rope.original_length:
        scaling = {"rope_type": "linear", "factor": float(rope.factor)}
    if rope.original_length:
        scaling |= {
            "rope_type": "llama3",
            "original_max_position_embeddings": rope.original_length,
            "low_freq_factor": float(rope.low_frequency_factor),
            "high_freq_factor": float(rope.high_frequency_factor),
        }
    raw = {
        **{name: getattr(config, ours) for name, ours in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": theirs,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": float(rope.theta),
        "rope_scaling": scaling,
    }
    scale = config.query_scale or (config.head_dim if config.family in _SCALED else None)
    optional = {
        "query_pre_attn_scalar": scale,
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.logits_soft_cap,
    }
    raw.update({name: value for name, value in optional.items() if value is not None})
    locals_ = [config.is_local(i) for i in range(config.num_layers)]
    if any(locals_) or config.family in _SCALED:
        raw["layer_types"] = [_KINDS[each] for each in locals_]
    if any(locals_):
        raw["sliding_window"] = max(config.layer_windows)
        raw["use_sliding_window"] = True
    return raw


def written_id(number: int | None, vocab_size: int) -> int | None:
    """Returns a special id for config.json: none where the table has no such row."""
    return None if number is None or number >= vocab_size else number


def check_written(config: DecoderConfig, found: DecoderConfig) -> None:
    """Refuses a model that its family's config.json cannot describe.

    Args:
      config: the architecture.
      found: the one that is read back from the written JSON.

    Raises:
      InvalidValue: they compute different things.
    """
    wanted, got = (_computed(each) for each in (config, found))
    for name, value in wanted.items():
        if value != got[name]:
            raise InvalidValue(
                f"a {config.family} of Hugging Face's format has no {name}={value}: it would be "
                f"read as {got[name]}; save a gkd run, or choose the family that has it"
            )


def _computed(config: DecoderConfig) -> dict[str, Any]:
    """The values that the computation depends on, whatever their form."""
    spelled = ("query_scale", "layer_windows", "rope", "local_rope", "padding", "end_ids")
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.compare and field.name not in (*spelled, *EXECUTION_FIELDS)
    }
    ropes = {(config.local_rope or config.rope) if config.is_local(i) else config.rope
             for i in range(config.num_layers)}  # fmt: skip
    return values | {
        "attention_scale": config.attention_scale, "windows": config.windows,
        "rope": sorted(ropes, key=dataclasses.astuple),  # 1000000 and 1000000.0 are equal
    }  # fmt: skip


def unused(files: Iterable[str]) -> frozenset[str]:
    """Names of tensors that early versions of transformers wrote and no model reads."""
    return frozenset(name for name in files if name.endswith(".rotary_emb.inv_freq"))


def layer_names(
    config: DecoderConfig,
    ours: str,
    theirs: str,
    norms: Mapping[str, str],
    attentions: Mapping[str, str] | None = None,
) -> dict[str, tuple[str, bool]]:
    """Maps the names of one layer.

    Args:
      config: the stack's configuration.
      ours, theirs: the layer's name.
      norms: our name of a norm, such as 'pre_mlp', to theirs.
      attentions: our name of an attention block to theirs; None: self-attention alone.
    """
    names = {
        f"{ours}/{name}_layer_norm/scale": (f"{theirs}.{norm}_layernorm.weight", False)
        for name, norm in norms.items()
    }
    for block, their_block in (attentions or {"self_attention": "self_attn"}).items():
        for name in ("query", "key", "value", "out"):
            place = f"{theirs}.{their_block}.{name[0]}_proj"
            names[f"{ours}/{block}/{name}/kernel"] = (f"{place}.weight", True)
            if config.attention_biases and name != "out":
                names[f"{ours}/{block}/{name}/bias"] = (f"{place}.bias", False)
        if config.qk_norms:
            for name in ("query", "key"):
                norm = f"{theirs}.{their_block}.{name[0]}_norm.weight"
                names[f"{ours}/{block}/{name}_norm/scale"] = (norm, False)
    for name, projection in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
        names[f"{ours}/mlp/{name}/kernel"] = (f"{theirs}.mlp.{projection}_proj.weight", True)
    return names
