"""T5 (v1.0, v1.1, mT5, ByT5, UL2, umT5): its architecture, Flax Linen module and functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gkd.errors import InvalidValue
from gkd.files.json_files import Field, check_fields, shown
from gkd.models import cached
from gkd.models.flops import MatrixSizes
from gkd.models.interface import T5_IDS, Encoded, Head, Hidden, Seq2SeqModel, SpecialIds, project
from gkd.models.layers import Embed
from gkd.models.row_parts import apart, divided, joined, side_by_side
from gkd.models.t5_stacks import Decoder, Encoder
from gkd.parallel.model_sharding import UNSHARDED, ModelSharding

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
    """The architecture of a T5 (see `gkd.models.architecture`). The defaults are T5 v1.1 small.

    Attributes:
      vocab_size: rows of the embedding table (may exceed the ids that the vocabulary uses).
      emb_dim, num_heads, head_dim, mlp_dim: widths; head_dim·num_heads need not equal emb_dim.
      num_encoder_layers, num_decoder_layers: depths.
      mlp_activations: ('gelu', 'linear') gated as in v1.1, ('relu',) as in v1.0.
      logits_via_embedding: tied head: the embedding table is the head, too.
      scale_logits: True divides logits by √emb_dim. None: exactly where the head is tied, as in T5X
        and T5 1.0; transformers 5 also makes tied T5 1.1 and mT5 models that are not scaled.
      relative_bias_per_layer: umT5 and T5X's scalable_t5: every layer has its own bias.
      dropout_rate: acts only where a dropout key is passed.
      dtype: compute dtype of the layers, 'float32' or 'bfloat16'; parameters stay as they are.
      stacked_layers: run the layers in a `lax.scan` over stacked parameters (`stack_layers`).
      remat: recompute each layer in the backward pass instead of storing its activations.
      family, embedding_copies: without effect on the model and on equality; Hugging Face's model
        type ('t5', 'mt5', 'umt5') and the names of further copies of the embedding table in a file
        of it, so that `save_hf` writes the file that `load_hf` read.
      configurable: True: the execution fields may be set.
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
    configurable: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(vars(self), T5_FIELDS, "T5Config")
        for name in ("mlp_activations", "embedding_copies"):  # JSON and gin have lists only
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
        """True where logits are hidden · head ÷ √emb_dim."""
        return self.logits_via_embedding if self.scale_logits is None else self.scale_logits

    @property
    def logits_scale(self) -> float:
        """The factor between hidden · head and the logits."""
        return self.emb_dim**-0.5 if self.scales_logits else 1.0

    @property
    def special_ids(self) -> SpecialIds:
        """Start and padding 0, end 1."""
        return T5_IDS

    @property
    def sizes(self) -> MatrixSizes:
        """Sizes of the matrix products."""
        width = self.num_heads * self.head_dim
        return MatrixSizes(
            vocab_size=self.vocab_size,
            emb_dim=self.emb_dim,
            num_heads=self.num_heads,
            query_width=width,
            key_width=width,
            mlp_dim=self.mlp_dim,
            mlp_kernels=len(self.mlp_activations) + 1,
            encoder_layers=self.num_encoder_layers,
            decoder_layers=self.num_decoder_layers,
            cross_attention=True,
            attends_in_blocks=True,
        )

    def build(self, sharding: ModelSharding = UNSHARDED) -> Seq2SeqModel:
        """Builds the model's functions, see `as_seq2seq`."""
        return as_seq2seq(self, sharding)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every parameter by name, layers not stacked."""
        return dict(_parameter_shapes(self))

    def with_execution(self, **changes: Any) -> T5Config:
        """Returns the same architecture with another dtype, dropout_rate, stacked_layers or remat.

        Args:
          **changes: new values of these fields; None keeps a field.
        """
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})

    def describe(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_description(cls, saved: Mapping[str, Any], where: str) -> T5Config:
        """Inverts `describe`; layers are neither stacked nor rematerialised.

        Raises:
          InvalidFile: a field that is unknown or out of bounds.
        """
        check_fields(saved, T5_FIELDS, where, unknown=False)
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
        return cls(**{**values, "stacked_layers": False, "remat": False})


class T5(nn.Module):
    """T5: `T5(config).apply({'params': p}, encoder_input_tokens, decoder_input_tokens)`.

    Attributes:
      config: the architecture.
      sharding: the mesh on which the activations live; none by default.
    """

    config: T5Config
    sharding: ModelSharding = UNSHARDED

    def setup(self):
        """Makes the parts under T5X's names."""
        cfg = self.config
        self.token_embedder = Embed(cfg.vocab_size, cfg.emb_dim, jnp.dtype(cfg.dtype))
        self.encoder = Encoder(cfg, self.sharding)
        self.decoder = Decoder(cfg, self.sharding)

    def encode(
        self, encoder_input_tokens: Int[Array, "batch source"], deterministic: bool = True
    ) -> Encoded:
        """Encodes prompts; id 0 is padding."""
        return self.encode_parts((encoder_input_tokens,), deterministic)[0]

    def encode_parts(
        self, parts: Sequence[Int[Array, "part _"]], deterministic: bool = True
    ) -> tuple[Encoded, ...]:
        """Encodes equally many prompts of several lengths."""
        masks = tuple(part > self.config.special_ids.padding for part in parts)
        embedded = self.token_embedder(side_by_side(parts))
        hidden = apart(
            self.encoder(embedded, masks, deterministic), [part.shape[1] for part in parts]
        )
        return tuple(map(Encoded, hidden, masks))

    def decode_hidden(
        self,
        encoded: Encoded,
        decoder_input_tokens: Int[Array, "batch length"],
        deterministic: bool = True,
        inner_layer: int | None = None,
    ) -> Hidden:
        """Computes hidden states at every position of teacher-forced inputs, G rows per prompt.

        The inputs are the targets shifted right; the G rows of a prompt are adjacent. The result
        has the inner layer of a number, if one is given: 1 is the first.
        """
        x = self.token_embedder(decoder_input_tokens)
        return self.decoder(x, encoded, deterministic, inner_layer)

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "batch source"],
        decoder_input_tokens: Int[Array, "batch length"],
    ) -> Float[Array, "batch length vocab"]:
        """Computes float32 logits at every decoder position, without dropout."""
        hidden = self.decode_hidden(self.encode(encoder_input_tokens), decoder_input_tokens)
        return project(hidden.last, head_of(self.config, self.variables["params"]))


def head_of(config: T5Config, params, sharding: ModelSharding = UNSHARDED) -> Head:
    """Returns a parameter tree's head: a kernel [E, V], or the tied embedding table [V, E]."""
    if config.logits_via_embedding:
        table = nn.meta.unbox(params["token_embedder"]["embedding"])
        head = Head(table, scale=config.logits_scale, transposed=True)
    else:
        kernel = nn.meta.unbox(params["decoder"]["logits_dense"]["kernel"])
        head = Head(kernel, config.logits_scale)
    return head.split_by_vocabulary(sharding)


def as_seq2seq(config: T5Config, sharding: ModelSharding = UNSHARDED) -> Seq2SeqModel:
    """Builds T5's pure functions.

    Args:
      config: the architecture; `dropout_rate` acts where a `dropout_rng` is passed.
      sharding: the mesh on which the functions run.

    Returns:
      The pure functions of `Seq2SeqModel`.
    """
    module = T5(config, sharding)

    def apply(method, params, *inputs, dropout_rng=None, **options):
        active = dropout_rng is not None and config.dropout_rate > 0
        rngs = {"dropout": dropout_rng} if active else None
        variables = {"params": params}
        return module.apply(variables, *inputs, not active, rngs=rngs, method=method, **options)

    def encode_parts(params, tokens, parts, **options):
        encoded = apply(T5.encode_parts, params, divided(tokens, parts), **options)
        return jax.tree.map(lambda *each: joined(each, tokens.shape[1], parts.shards), *encoded)

    return Seq2SeqModel(
        init=_initialiser(config),
        encode=partial(apply, T5.encode),
        decode_hidden=partial(apply, T5.decode_hidden),
        init_cache=partial(cached.init_cache, config, sharding),
        decode_step=partial(cached.decode_step, config, sharding),
        head=partial(head_of, config, sharding=sharding),
        vocab_size=config.vocab_size,
        dtype=config.dtype,
        special_ids=config.special_ids,
        inner_layers=config.num_decoder_layers - 1,
        encode_parts=encode_parts,
    )


@lru_cache(maxsize=32)
def _initialiser(config):
    """Makes the function (key) -> parameters, which is traced once for each architecture."""

    def init(rng):  # on one row, which no mesh divides
        tokens = jnp.ones((1, 2), jnp.int32)
        return T5(config).init(rng, tokens, tokens)["params"]

    return jax.jit(init)


@lru_cache(maxsize=8)
def _parameter_shapes(config):
    """(name, shape) of every parameter, from a model of one layer: all layers are alike."""
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    one = dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), 1)
    model = as_seq2seq(dataclasses.replace(config, stacked_layers=False, remat=False, **one))
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    shapes = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(nn.meta.unbox(boxed))[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        depth = depths[name.split("/")[0]] if "/layers_0/" in name else 1
        for i in range(depth):
            shapes[name.replace("/layers_0/", f"/layers_{i}/", 1)] = tuple(leaf.shape)
    return tuple(shapes.items())


_SIDES = ("encoder", "decoder")


def stack_layers(params):
    """Stacks layers_0, layers_1, … into one subtree `layers` with a leading layer axis.

    Those of other architectures too; a decoder-only model has no encoder.
    """

    def stack(side):
        count = sum(name.startswith("layers_") for name in side)
        layers = [side[f"layers_{i}"] for i in range(count)]
        rest = {name: value for name, value in side.items() if not name.startswith("layers_")}
        return {**rest, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}

    return {**params, **{side: stack(params[side]) for side in _SIDES if side in params}}


def unstack_layers(params):
    """Inverts `stack_layers`."""
    return {**params, **{side: cached.unstack(params[side]) for side in _SIDES if side in params}}
