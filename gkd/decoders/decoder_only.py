"""Decoder-only models: the architecture of Qwen3, Qwen2.5, Llama 3, SmolLM2 and Gemma 3.

One configuration serves all families; `gkd.decoders.continuation` has the functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn

from gkd.decoders import cached, continuation
from gkd.decoders.attention import EVERYWHERE
from gkd.decoders.blocks import Parameter, initialise, norm_parameter, stack_parameters
from gkd.decoders.rotary import Rope
from gkd.errors import InvalidValue
from gkd.files.json_files import Field, check_fields
from gkd.models.flops import MatrixSizes
from gkd.models.interface import Head, Seq2SeqModel, SpecialIds
from gkd.parallel.model_sharding import UNSHARDED, ModelSharding

PADDING = -1  # 0 is a token of these vocabularies, and their padding often is an end
FAMILIES = ("qwen3", "qwen2", "llama", "gemma3_text")  # decoder-only
_COUNT = Field(kinds=(int,), least=1, most=1 << 20)
_SWITCH = Field(kinds=(bool,))
_NUMBER = Field(kinds=(int, float), above=0, most=1e12)
_LIST = Field(kinds=(tuple, list), most=1 << 10)
# What a DecoderConfig accepts, wherever it comes from; far above any published model.
DECODER_FIELDS = {
    "vocab_size": Field(kinds=(int,), least=1, most=1 << 24),
    "emb_dim": _COUNT,
    "num_heads": Field(kinds=(int,), least=1, most=1 << 12),
    "num_kv_heads": Field(kinds=(int,), least=1, most=1 << 12),
    "head_dim": Field(kinds=(int,), least=2, most=1 << 14),
    "mlp_dim": _COUNT,
    "num_layers": Field(kinds=(int,), least=1, most=1 << 10),
    "mlp_activation": Field(kinds=(str,), choices=("silu", "gelu")),
    "norm_epsilon": Field(kinds=(float,), above=0, below=1),
    "unit_offset_norms": _SWITCH,
    "post_norms": _SWITCH,
    "qk_norms": _SWITCH,
    "attention_biases": _SWITCH,
    "scale_embeddings": _SWITCH,
    "query_scale": dataclasses.replace(_NUMBER, none=True),
    "attention_soft_cap": dataclasses.replace(_NUMBER, none=True),
    "logits_soft_cap": dataclasses.replace(_NUMBER, none=True),
    "rope": Field(kinds=(Rope,)),
    "local_rope": Field(kinds=(Rope,), none=True),
    "layer_windows": _LIST,
    "logits_via_embedding": _SWITCH,
    "end_ids": Field(kinds=(tuple, list), least=1, most=100),
    "padding": Field(kinds=(int,), least=-1, most=1 << 24),
    "bos_token_id": Field(kinds=(int,), least=-1, most=1 << 24, none=True),
    "pad_token_id": Field(kinds=(int,), least=-1, most=1 << 24, none=True),
    "context_length": Field(kinds=(int,), least=1, most=1 << 30),
    "dtype": Field(kinds=(str,), choices=("float32", "bfloat16")),
    "dropout_rate": Field(kinds=(float,), least=0, most=1),
    "stacked_layers": _SWITCH,
    "remat": _SWITCH,
    "family": Field(kinds=(str,), choices=(*FAMILIES, "t5gemma", "t5gemma2")),
    "embedding_copies": Field(kinds=(tuple, list), most=8),
}
_ROPE_FIELDS = {
    "theta": dataclasses.replace(_NUMBER, required=True),
    "factor": _NUMBER,
    "original_length": Field(kinds=(int,), least=0, most=1 << 30),
    "low_frequency_factor": _NUMBER,
    "high_frequency_factor": _NUMBER,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder-only model. The defaults are Qwen3-0.6B.

    Attributes:
      vocab_size: rows of the embedding table (may exceed the ids that the vocabulary uses).
      emb_dim, num_heads, head_dim, mlp_dim, num_layers: sizes; head_dim·num_heads need not equal
        emb_dim.
      num_kv_heads: heads of the keys and values, each shared by num_heads / num_kv_heads queries.
      mlp_activation: the gate's function, 'silu' or 'gelu' (by tanh).
      norm_epsilon: ε of the norms; unit_offset_norms: they multiply by 1 + scale (Gemma).
      post_norms: attention and feed-forward blocks also norm their results (Gemma).
      qk_norms: queries and keys are normed per head, before they are rotated (Qwen3, Gemma 3).
      attention_biases: queries, keys and values have biases (Qwen2).
      scale_embeddings: embeddings are multiplied by √emb_dim (Gemma).
      query_scale: scores are divided by its root; None: head_dim.
      attention_soft_cap, logits_soft_cap: c of c · tanh(x / c); None: not capped.
      rope: positions in layers that see everything; local_rope: in layers with a window, None: the
        same.
      layer_windows: pattern of the layers' windows, repeated over the layers; in a layer of window
        w a token sees itself and w − 1 before it, 0 is everything.
      logits_via_embedding: tied head: the embedding table is the head, too.
      end_ids: ids that end an output; the first is appended to targets.
      padding: follows the end of rows; −1, as no id of these vocabularies is free for it.
      bos_token_id, pad_token_id, context_length: without effect on the model, for config.json: the
        vocabulary's first and padding id, and the longest text.
      dtype: compute dtype, 'float32' or 'bfloat16'; parameters stay as they are.
      dropout_rate: 0; these models have none.
      stacked_layers: run the layers in a `lax.scan` over stacked parameters.
      remat: recompute each layer in the backward pass instead of storing its activations.
      family, embedding_copies: without effect on the model; model type of transformers, and names
        of copies of the embedding table in a file, so that `save_hf` writes what `load_hf` read.
      configurable: True: the execution fields may be set.
    """

    vocab_size: int = 151936
    emb_dim: int = 1024
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    mlp_dim: int = 3072
    num_layers: int = 28
    mlp_activation: str = "silu"
    norm_epsilon: float = 1e-6
    unit_offset_norms: bool = False
    post_norms: bool = False
    qk_norms: bool = True
    attention_biases: bool = False
    scale_embeddings: bool = False
    query_scale: float | int | None = None
    attention_soft_cap: float | int | None = None
    logits_soft_cap: float | int | None = None
    rope: Rope = Rope(theta=1e6)
    local_rope: Rope | None = None
    layer_windows: tuple[int, ...] = (0,)
    logits_via_embedding: bool = True
    end_ids: tuple[int, ...] = (151645, 151643)
    padding: int = PADDING
    bos_token_id: int | None = dataclasses.field(default=151643, compare=False)
    pad_token_id: int | None = dataclasses.field(default=151643, compare=False)
    context_length: int = dataclasses.field(default=40960, compare=False)
    dtype: str = "float32"
    dropout_rate: float = 0.0
    stacked_layers: bool = False
    remat: bool = False
    family: str = dataclasses.field(default="qwen3", compare=False)
    embedding_copies: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    configurable: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(vars(self), DECODER_FIELDS, "DecoderConfig")
        for name in ("rope", "local_rope"):
            rope = getattr(self, name)
            if rope is not None:
                check_fields(vars(rope), _ROPE_FIELDS, f"DecoderConfig.{name}")
        for name in ("layer_windows", "end_ids"):  # JSON and gin have lists
            values = tuple(getattr(self, name))
            if not values or not all(type(each) is int and each >= 0 for each in values):
                raise InvalidValue(f"DecoderConfig.{name} is {values}: give integers of 0 or more")
            object.__setattr__(self, name, values)
        object.__setattr__(self, "embedding_copies", tuple(self.embedding_copies))
        if self.num_heads % self.num_kv_heads:
            raise InvalidValue(
                f"DecoderConfig: {self.num_heads} heads do not divide over num_kv_heads "
                f"{self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InvalidValue(f"DecoderConfig.head_dim is {self.head_dim}: pairs are rotated")
        if self.dropout_rate:
            raise InvalidValue(
                f"dropout_rate is {self.dropout_rate}: decoder-only models have no dropout, use 0"
            )

    def is_local(self, layer: int) -> bool:
        """True where a layer, counted from 0, has a window."""
        return self.layer_windows[layer % len(self.layer_windows)] > 0

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of every layer, in tokens."""
        pattern = self.layer_windows
        return tuple(pattern[i % len(pattern)] or EVERYWHERE for i in range(self.num_layers))

    @property
    def attention_scale(self) -> float:
        """Factor of the scores."""
        return (self.query_scale or self.head_dim) ** -0.5

    @property
    def special_ids(self) -> SpecialIds:
        """The ends, and padding that is no id; the first input is the prompt's last token."""
        return SpecialIds(start=0, end=self.end_ids[0], padding=self.padding, ends=self.end_ids)

    @property
    def sizes(self) -> MatrixSizes:
        """Sizes of the matrix products."""
        return MatrixSizes(
            vocab_size=self.vocab_size,
            emb_dim=self.emb_dim,
            num_heads=self.num_heads,
            key_heads=self.num_kv_heads,
            query_width=self.num_heads * self.head_dim,
            key_width=self.num_kv_heads * self.head_dim,
            mlp_dim=self.mlp_dim,
            mlp_kernels=3,
            encoder_layers=self.num_layers,
            decoder_layers=self.num_layers,
            cross_attention=False,
            attends_in_blocks=True,
            keys_only=not self.stacked_layers,
        )

    def build(self, sharding: ModelSharding = UNSHARDED) -> Seq2SeqModel:
        """Builds the model's functions."""
        return Seq2SeqModel(
            init=lambda rng: initialise(parameters(self), rng),
            encode=partial(continuation.encode, self, sharding),
            encode_parts=partial(continuation.encode, self, sharding),
            decode_hidden=partial(continuation.decode_hidden, self, sharding),
            init_cache=partial(continuation.init_cache, self, sharding),
            decode_step=partial(cached.decode_step, self, sharding),
            head=partial(head_of, self, sharding=sharding),
            vocab_size=self.vocab_size,
            dtype=self.dtype,
            special_ids=self.special_ids,
        )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every parameter by name, layers not stacked."""
        plain = dataclasses.replace(self, stacked_layers=False)
        return {name: shape for name, (shape, _, _) in parameters(plain).items()}

    def with_execution(self, **changes: Any) -> DecoderConfig:
        """Returns the same architecture with another dtype, dropout_rate, stacked_layers or remat.

        Args:
          **changes: new values of these fields; None keeps a field.
        """
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})

    def with_layers(self, numbers: Sequence[int]) -> DecoderConfig:
        """Returns the architecture of the model with these layers only, each with its window."""
        pattern = self.layer_windows
        windows = [pattern[number % len(pattern)] for number in numbers]
        return dataclasses.replace(
            self, num_layers=len(windows), layer_windows=shortest_pattern(windows)
        )

    def with_special_ids(self, padding: int, end: int, ends: tuple[int, ...]) -> DecoderConfig:
        """Returns the same architecture with a vocabulary's special ids.

        Args:
          padding: follows the end of rows.
          end: is appended to targets.
          ends: all ids that end an output.
        """
        ends = tuple(dict.fromkeys((end, *ends)))
        return dataclasses.replace(self, padding=padding, end_ids=ends)

    def describe(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return {"architecture": "decoder_only", **dataclasses.asdict(self)}

    @classmethod
    def from_description(cls, saved: Mapping[str, Any], where: str) -> DecoderConfig:
        """Inverts `describe`; layers are neither stacked nor rematerialised.

        Raises:
          InvalidFile: a field that is unknown or out of bounds.
        """
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
        for name in ("rope", "local_rope"):
            rope = values.get(name)
            if isinstance(rope, dict):
                check_fields(rope, _ROPE_FIELDS, f"{where}, {name}", unknown=False)
                values[name] = Rope(**rope)
        check_fields(values, DECODER_FIELDS, where, unknown=False)
        return cls(**{**values, "stacked_layers": False, "remat": False})


def shortest_pattern(values: Sequence[int]) -> tuple[int, ...]:
    """Returns the shortest pattern that makes the values when it is repeated.

    >>> shortest_pattern([8, 8, 0, 8])
    (8, 8, 0)
    """
    sizes = range(1, len(values) + 1)
    repeats = lambda size: all(v == values[i % size] for i, v in enumerate(values))  # noqa: E731
    return tuple(values[: next(filter(repeats, sizes))])


def parameters(config: DecoderConfig) -> dict[str, Parameter]:
    """Lists all parameters by name; layers are stacked where the configuration has them so."""
    found = {"token_embedder/embedding": table_parameter(config)}
    stack = stack_parameters(config)
    found.update({f"decoder/{name}": each for name, each in stack.items()})
    found["decoder/decoder_norm/scale"] = norm_parameter(config, config.emb_dim)
    if not config.logits_via_embedding:
        shape, axes, init = table_parameter(config)
        found["decoder/logits_dense/kernel"] = (shape[::-1], axes[::-1], init)
    return found


def table_parameter(config: DecoderConfig) -> Parameter:
    """The embedding table."""
    return (config.vocab_size, config.emb_dim), ("vocab", "embed"), nn.initializers.normal(0.02)


def head_of(config: DecoderConfig, params: Any, sharding: ModelSharding = UNSHARDED) -> Head:
    """Returns a parameter tree's head: a kernel [E, V], or the tied embedding table [V, E]."""
    cap = config.logits_soft_cap
    if config.logits_via_embedding:
        table = nn.meta.unbox(params["token_embedder"]["embedding"])
        head = Head(table, transposed=True, soft_cap=cap)
    else:
        head = Head(nn.meta.unbox(params["decoder"]["logits_dense"]["kernel"]), soft_cap=cap)
    return head.split_by_vocabulary(sharding)
