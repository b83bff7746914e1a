"""T5 (v1.0, v1.1, mT5, ByT5, UL2, umT5) as a Flax Linen module, and as a `Seq2SeqModel`."""

from __future__ import annotations

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gkd.errors import InvalidValue
from gkd.files.json_files import Field, check_fields, shown
from gkd.models import cached
from gkd.models.attention_sharding import layer_rows
from gkd.models.interface import Encoded, Head, Hidden, Seq2SeqModel, project
from gkd.models.layers import (
    MASKED,
    Attention,
    Dense,
    Embed,
    Mlp,
    RelativeBias,
    RMSNorm,
    padding_bias,
)

RESIDUAL = ("batch", "length", "activation_embed")
_COUNT = Field(kinds=(int,), least=1, most=1 << 20)
_SWITCH = Field(kinds=(bool,))
_NAMES = Field(kinds=(tuple, list), most=8)
# What a T5Config accepts, wherever it comes from: gin, a run's description, config.json, T5X. The
# bounds are far above any T5 and keep a damaged file from taking all memory.
T5_FIELDS = {
    "vocab_size": Field(kinds=(int,), least=1, most=1 << 24),
    "emb_dim": _COUNT,
    "num_heads": Field(kinds=(int,), least=1, most=1 << 12),
    "head_dim": Field(kinds=(int,), least=1, most=1 << 14),
    "mlp_dim": _COUNT,
    "num_encoder_layers": Field(kinds=(int,), least=1, most=1 << 10),
    "num_decoder_layers": Field(kinds=(int,), least=1, most=1 << 10),
    "mlp_activations": _NAMES,
    "logits_via_embedding": _SWITCH,
    "scale_logits": Field(kinds=(bool,), none=True),
    "relative_bias_per_layer": _SWITCH,
    "dropout_rate": Field(kinds=(float,), least=0, most=1),
    "dtype": Field(kinds=(str,), choices=("float32", "bfloat16")),
    "stacked_layers": _SWITCH,
    "remat": _SWITCH,
    "family": Field(kinds=(str,), choices=("t5", "mt5", "umt5")),
    "embedding_copies": _NAMES,
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The architecture of a T5. The defaults are T5 v1.1 small.

    Attributes:
      vocab_size: rows of the embedding table (may exceed the ids that the vocabulary uses).
      emb_dim, num_heads, head_dim, mlp_dim: widths; head_dim·num_heads need not equal emb_dim.
      num_encoder_layers, num_decoder_layers: depths.
      mlp_activations: ('gelu', 'linear') gated as in v1.1, ('relu',) as in v1.0.
      logits_via_embedding: tied head: the embedding table is the head, too.
      scale_logits: whether logits are divided by √emb_dim. None: exactly where the head is tied, as
        in T5X and T5 1.0; transformers 5 also makes tied T5 1.1 and mT5 models that are not scaled.
      relative_bias_per_layer: umT5 and T5X's scalable_t5: every layer has its own bias.
      dropout_rate: used only where a dropout key is given.
      dtype: compute dtype of the layers, 'float32' or 'bfloat16'; parameters stay as they are.
      stacked_layers: run the layers in a `lax.scan` over stacked parameters (`stack_layers`).
      remat: recompute each layer in the backward pass instead of storing its activations.
      family, embedding_copies: without effect on the model and on equality; Hugging Face's model
        type ('t5', 'mt5', 'umt5') and the names under which a file of it held the embedding table
        again, so that what was read can be written as it was.
    """

    vocab_size: int = 32128
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    scale_logits: bool | None = None
    relative_bias_per_layer: bool = False
    dropout_rate: float = 0.0
    dtype: str = "float32"
    stacked_layers: bool = False
    remat: bool = False
    family: str = dataclasses.field(default="t5", compare=False)
    embedding_copies: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __post_init__(self):
        check_fields(vars(self), T5_FIELDS, "T5Config")
        for name in ("mlp_activations", "embedding_copies"):  # JSON and gin know lists only
            names = tuple(getattr(self, name))
            if not all(isinstance(each, str) for each in names):
                raise InvalidValue(f"T5Config: {name} is {shown(names)}: names are needed")
            object.__setattr__(self, name, names)
        if len(self.mlp_activations) not in (1, 2):
            raise InvalidValue(
                f"T5Config.mlp_activations is {self.mlp_activations}: one (v1.0) or two (gated)"
            )
        if self.scale_logits == self.logits_via_embedding:  # one form of each model: they compare
            object.__setattr__(self, "scale_logits", None)

    @property
    def scales_logits(self) -> bool:
        """Whether logits are hidden · head ÷ √emb_dim."""
        return self.logits_via_embedding if self.scale_logits is None else self.scale_logits

    @property
    def logits_scale(self) -> float:
        """The factor between hidden · head and the logits."""
        return self.emb_dim**-0.5 if self.scales_logits else 1.0


def _dropout(config, deterministic):
    """Dropout shared along the length, as T5 has it."""
    return partial(
        nn.Dropout(config.dropout_rate, broadcast_dims=(-2,)), deterministic=deterministic
    )


def _norm(config, name):
    return RMSNorm(jnp.dtype(config.dtype), name=name)


def _attention(config, deterministic, name):
    dtype = jnp.dtype(config.dtype)
    sizes = (config.num_heads, config.head_dim, dtype, config.dropout_rate)
    return Attention(*sizes, deterministic, name=name)


def _mlp(config, deterministic, name):
    sizes = (config.mlp_dim, config.mlp_activations, jnp.dtype(config.dtype), config.dropout_rate)
    return Mlp(*sizes, deterministic, name=name)


def _relative_bias(config, length, bidirectional):
    return RelativeBias(config.num_heads, bidirectional, name="relpos_bias")(length)


def _as_residual(x, rows):
    """A layer's result, placed as the next layer takes it."""
    return rows.spread(x) if rows.spread_over else nn.with_logical_constraint(x, RESIDUAL)


class EncoderLayer(nn.Module):
    """Self-attention and MLP; returns (states, None) so that `nn.scan` can carry it."""

    config: T5Config
    deterministic: bool

    @nn.compact
    def __call__(self, x, padding, relative):
        """x [B, S, E], biases [B, 1, 1, S] and [1, H, S, S] (None: its own) -> (like x, None)."""
        cfg, deterministic = self.config, self.deterministic
        rows = layer_rows(cfg.num_heads, len(x))
        dropout = _dropout(cfg, deterministic)
        if cfg.relative_bias_per_layer:
            relative = _relative_bias(cfg, x.shape[1], bidirectional=True)
        y = _norm(cfg, "pre_attention_layer_norm")(x)
        x = x + dropout(_attention(cfg, deterministic, "attention")(y, y, relative, padding))
        y = rows.gather(_norm(cfg, "pre_mlp_layer_norm")(x))
        x = x + dropout(rows.scatter(_mlp(cfg, deterministic, "mlp")(y)))
        return _as_residual(x, rows), None


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, MLP; returns (states, None)."""

    config: T5Config
    deterministic: bool

    @nn.compact
    def __call__(self, x, bias, context, context_bias):
        """x [B·G, T, E], bias [1, H|1, T, T], context [B, S, E], its bias -> (like x, None)."""
        cfg, deterministic = self.config, self.deterministic
        rows = layer_rows(cfg.num_heads, len(context))
        dropout = _dropout(cfg, deterministic)
        if cfg.relative_bias_per_layer:
            bias = bias + _relative_bias(cfg, x.shape[1], bidirectional=False)
        y = _norm(cfg, "pre_self_attention_layer_norm")(x)
        x = x + dropout(_attention(cfg, deterministic, "self_attention")(y, y, bias))
        y = _norm(cfg, "pre_cross_attention_layer_norm")(x)
        cross = _attention(cfg, deterministic, "encoder_decoder_attention")
        # The G rows of a prompt as one long row: its keys and values are made and read once.
        together = y.reshape(len(context), -1, y.shape[-1])
        x = x + dropout(cross(together, context, context_bias).reshape(y.shape))
        y = rows.gather(_norm(cfg, "pre_mlp_layer_norm")(x))
        x = x + dropout(rows.scatter(_mlp(cfg, deterministic, "mlp")(y)))
        return _as_residual(x, rows), None


def _run_layers(layer, config, deterministic, depth, x, *inputs):
    """Applies `depth` layers, stacked or one by one; called inside a compact method."""
    if config.remat:
        layer = nn.remat(layer, prevent_cse=not config.stacked_layers)
    if not config.stacked_layers:
        for i in range(depth):
            x, _ = layer(config, deterministic, name=f"layers_{i}")(x, *inputs)
        return x
    scanned = nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return scanned(config, deterministic, name="layers")(x, *inputs)[0]


class Encoder(nn.Module):
    """The encoder's stack."""

    config: T5Config

    @nn.compact
    def __call__(self, x, mask, deterministic):
        """Embedded prompt [B, S, E] and its mask [B, S] -> [B, S, E]."""
        cfg = self.config
        rows = layer_rows(cfg.num_heads, len(x))
        dropout = _dropout(cfg, deterministic)
        relative = None
        if not cfg.relative_bias_per_layer:
            relative = _relative_bias(cfg, x.shape[1], bidirectional=True)
        inputs = rows.scatter(padding_bias(mask)), relative
        x = rows.scatter(dropout(x))
        x = _run_layers(EncoderLayer, cfg, deterministic, cfg.num_encoder_layers, x, *inputs)
        return dropout(_norm(cfg, "encoder_norm")(x))


class Decoder(nn.Module):
    """The decoder's stack and, where the head is its own, the head."""

    config: T5Config

    @nn.compact
    def __call__(self, x, encoded, deterministic):
        """Embedded inputs [B·G, T, E] -> hidden states [B·G, T, E], ready for the head."""
        cfg = self.config
        rows = layer_rows(cfg.num_heads, len(encoded.mask))
        dropout = _dropout(cfg, deterministic)
        length = x.shape[1]
        positions = jnp.arange(length)  # a constant [T, T] would take memory while tracing
        causal = positions[:, None] >= positions
        bias = jnp.where(causal, 0.0, MASKED)[None, None].astype(jnp.float32)  # [1, 1, T, T]
        if not cfg.relative_bias_per_layer:
            bias = bias + _relative_bias(cfg, length, bidirectional=False)  # [1, H, T, T]
        inputs = (bias, rows.spread(encoded.hidden), rows.scatter(padding_bias(encoded.mask)))
        x = rows.scatter(dropout(x))
        x = _run_layers(DecoderLayer, cfg, deterministic, cfg.num_decoder_layers, x, *inputs)
        x = rows.gather(dropout(_norm(cfg, "decoder_norm")(x)))
        if not cfg.logits_via_embedding and self.is_initializing():
            Dense(cfg.vocab_size, ("embed", "vocab"), name="logits_dense")(x)
        return x


class T5(nn.Module):
    """T5: `T5(config).apply({'params': p}, encoder_input_tokens, decoder_input_tokens)`."""

    config: T5Config

    def setup(self):
        """Names the parts as T5X does."""
        cfg = self.config
        self.token_embedder = Embed(cfg.vocab_size, cfg.emb_dim, jnp.dtype(cfg.dtype))
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)

    def encode(
        self, encoder_input_tokens: Int[Array, "batch source"], deterministic: bool = True
    ) -> Encoded:
        """Encodes prompts; id 0 is padding."""
        mask = encoder_input_tokens > 0
        hidden = self.encoder(self.token_embedder(encoder_input_tokens), mask, deterministic)
        return Encoded(hidden, mask)

    def decode_hidden(
        self,
        encoded: Encoded,
        decoder_input_tokens: Int[Array, "batch length"],
        deterministic: bool = True,
    ) -> Hidden:
        """Hidden states at every position of teacher-forced inputs (targets shifted right).

        Every prompt may have G rows of inputs, one after the other.
        """
        x = self.token_embedder(decoder_input_tokens)
        return Hidden(self.decoder(x, encoded, deterministic))

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "batch source"],
        decoder_input_tokens: Int[Array, "batch length"],
    ) -> Float[Array, "batch length vocab"]:
        """float32 logits of every vocabulary entry at every decoder position, without dropout."""
        hidden = self.decode_hidden(self.encode(encoder_input_tokens), decoder_input_tokens)
        return project(hidden.last, head_of(self.config, self.variables["params"]))


def head_of(config: T5Config, params) -> Head:
    """The head of a parameter tree: its own kernel [E, V], or the embedding table [V, E]."""
    if config.logits_via_embedding:
        table = nn.meta.unbox(params["token_embedder"]["embedding"])
        return Head(table, scale=config.logits_scale, transposed=True)
    return Head(nn.meta.unbox(params["decoder"]["logits_dense"]["kernel"]), config.logits_scale)


def as_seq2seq(config: T5Config) -> Seq2SeqModel:
    """T5 behind the interface that sampling, losses and evaluation use.

    Args:
      config: the architecture; `dropout_rate` acts where a `dropout_rng` is passed.

    Returns:
      The pure functions of `Seq2SeqModel`.
    """
    module = T5(config)

    def init(rng):
        return module.init(rng, jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), jnp.int32))["params"]

    def apply(method, params, *inputs, dropout_rng=None):
        active = dropout_rng is not None and config.dropout_rate > 0
        rngs = {"dropout": dropout_rng} if active else None
        return module.apply({"params": params}, *inputs, not active, rngs=rngs, method=method)

    return Seq2SeqModel(
        init=init,
        encode=partial(apply, T5.encode),
        decode_hidden=partial(apply, T5.decode_hidden),
        init_cache=partial(cached.init_cache, config),
        decode_step=partial(cached.decode_step, config),
        head=partial(head_of, config),
        vocab_size=config.vocab_size,
        dtype=config.dtype,
    )


def stack_layers(params):
    """layers_0, layers_1, … -> one subtree `layers` with a leading layer axis (stacked_layers)."""

    def stack(side):
        count = sum(name.startswith("layers_") for name in side)
        layers = [side[f"layers_{i}"] for i in range(count)]
        rest = {name: value for name, value in side.items() if not name.startswith("layers_")}
        return {**rest, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}

    return {**params, "encoder": stack(params["encoder"]), "decoder": stack(params["decoder"])}


def unstack_layers(params):
    """The inverse of `stack_layers`."""
    return {
        **params,
        "encoder": cached.unstack(params["encoder"]),
        "decoder": cached.unstack(params["decoder"]),
    }
