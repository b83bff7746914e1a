"""T5Gemma and T5Gemma 2: an encoder and a decoder, made of the layers of decoder-only models.

T5Gemma's encoder and decoder may differ in size. Its encoder's windows reach w − 1 tokens to both
sides, as in Google's code and transformers 4; transformers 5 lets them reach w. Published windows
have 4096 tokens, so longer inputs alone differ. In T5Gemma 2 both stacks and the head share a
table, and the decoder's self-attention also reads the encoder's states, through its own kernels,
under one softmax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from gkd.decoders import cached
from gkd.decoders.attention import Keys
from gkd.decoders.blocks import (
    CROSS,
    SELF,
    Parameter,
    embed,
    initialise,
    norm,
    norm_parameter,
    rotations,
    run_layers,
    stack_parameters,
)
from gkd.decoders.decoder_only import DecoderConfig, head_of, table_parameter
from gkd.decoders.layer import Place, apply_layer, context_keys, text_of
from gkd.decoders.rotary import Rope
from gkd.errors import InvalidFile, InvalidValue
from gkd.files.json_files import Field, check_fields
from gkd.models.attention_sharding import row_sharding
from gkd.models.cached import unstack
from gkd.models.flops import MatrixSizes
from gkd.models.interface import Encoded, Hidden, Seq2SeqModel, SpecialIds
from gkd.models.row_parts import RowParts
from gkd.parallel.model_sharding import UNSHARDED, ModelSharding

_EXECUTION = ("dtype", "dropout_rate", "stacked_layers", "remat")


_SMALL = DecoderConfig(
    vocab_size=256000, emb_dim=512, num_heads=8, num_kv_heads=8, head_dim=64, mlp_dim=1024,
    num_layers=8, mlp_activation="gelu", unit_offset_norms=True, post_norms=True, qk_norms=False,
    scale_embeddings=True, query_scale=64, attention_soft_cap=50.0, logits_soft_cap=30.0,
    rope=Rope(), layer_windows=(4096, 0), end_ids=(1, 107), bos_token_id=2, pad_token_id=0,
    context_length=8192, family="t5gemma",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig:
    """The architecture of a T5Gemma. The defaults are T5Gemma S-S.

    Attributes:
      encoder, decoder: the two stacks; both have their own embedding table, and the decoder's is
        the head where `decoder.logits_via_embedding` is True. The decoder has the special ids.
      start_id: the decoder's first input.
      version: 1, or 2 for T5Gemma 2: one table, merged attention in the decoder, and windows of the
        encoder with their token in the middle.
      configurable: True: the execution fields may be set.
    """

    encoder: DecoderConfig = _SMALL
    decoder: DecoderConfig = _SMALL
    start_id: int = 2
    version: int = 1
    configurable: ClassVar[bool] = True

    def __post_init__(self):
        for name in ("encoder", "decoder"):
            if not isinstance(getattr(self, name), DecoderConfig):
                kind = type(getattr(self, name)).__name__
                raise InvalidValue(f"T5GemmaConfig.{name} is a {kind}: give a DecoderConfig")
        for name in _EXECUTION:
            if getattr(self.encoder, name) != getattr(self.decoder, name):
                raise InvalidValue(
                    f"T5GemmaConfig: encoder and decoder differ in {name}: give both the same"
                )
        if self.encoder.vocab_size != self.decoder.vocab_size:
            raise InvalidValue(
                f"T5GemmaConfig: the encoder has {self.encoder.vocab_size} ids, the decoder "
                f"{self.decoder.vocab_size}: both read one vocabulary"
            )
        if self.version not in (1, 2):
            raise InvalidValue(f"T5GemmaConfig.version is {self.version}: there are 1 and 2")
        if self.is_merged and self.encoder.emb_dim != self.decoder.emb_dim:
            raise InvalidValue(
                f"T5GemmaConfig: the encoder's width is {self.encoder.emb_dim}, the decoder's "
                f"{self.decoder.emb_dim}: those of version 2 share a table"
            )

    @property
    def is_merged(self) -> bool:
        """True where the decoder attends to itself and to the encoder under one softmax."""
        return self.version == 2

    @property
    def family(self) -> str:
        """Model type of transformers."""
        return self.decoder.family

    @property
    def vocab_size(self) -> int:
        """V, rows of both tables."""
        return self.decoder.vocab_size

    @property
    def dtype(self) -> str:
        """Compute dtype."""
        return self.decoder.dtype

    @property
    def dropout_rate(self) -> float:
        """0: there is no dropout."""
        return self.decoder.dropout_rate

    @property
    def stacked_layers(self) -> bool:
        """True where layers run in a scan."""
        return self.decoder.stacked_layers

    @property
    def remat(self) -> bool:
        """True where the backward pass recomputes each layer."""
        return self.decoder.remat

    @property
    def embedding_copies(self) -> tuple[str, ...]:
        """Names of copies of the decoder's table in a file."""
        return self.decoder.embedding_copies

    @property
    def special_ids(self) -> SpecialIds:
        """The decoder's, with the start id."""
        return dataclasses.replace(self.decoder.special_ids, start=self.start_id)

    @property
    def sizes(self) -> MatrixSizes:
        """Sizes of the matrix products."""
        return dataclasses.replace(
            self.decoder.sizes,
            encoder_layers=self.encoder.num_layers,
            cross_attention=True,
            merged_attention=self.is_merged,
            encoder=self.encoder.sizes,
            keys_only=False,
        )

    def build(self, sharding: ModelSharding = UNSHARDED) -> Seq2SeqModel:
        """Builds the model's functions."""
        return Seq2SeqModel(
            init=lambda rng: initialise(parameters(self), rng),
            encode=partial(_encode, self, sharding),
            encode_parts=partial(_encode, self, sharding),
            decode_hidden=partial(_decode_hidden, self, sharding),
            init_cache=partial(_init_cache, self, sharding),
            decode_step=partial(cached.decode_step, self.decoder, sharding),
            head=partial(head_of, self.decoder, sharding=sharding),
            vocab_size=self.vocab_size,
            dtype=self.dtype,
            special_ids=self.special_ids,
        )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every parameter by name, layers not stacked."""
        plain = self.with_execution(stacked_layers=False)
        return {name: shape for name, (shape, _, _) in parameters(plain).items()}

    def with_execution(self, **changes: Any) -> T5GemmaConfig:
        """Returns the same architecture with another dtype, dropout_rate, stacked_layers or remat.

        Args:
          **changes: new values of these fields; None keeps a field.
        """
        sides = (side.with_execution(**changes) for side in (self.encoder, self.decoder))
        return T5GemmaConfig(*sides, self.start_id, self.version)

    def with_special_ids(self, padding: int, end: int, ends: tuple[int, ...]) -> T5GemmaConfig:
        """Returns the same architecture with a vocabulary's special ids, see `DecoderConfig`."""
        sides = (self.encoder, self.decoder)
        sides = (side.with_special_ids(padding, end, ends) for side in sides)
        return T5GemmaConfig(*sides, self.start_id, self.version)

    def describe(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return {"architecture": "t5gemma", **dataclasses.asdict(self)}

    @classmethod
    def from_description(cls, saved: Mapping[str, Any], where: str) -> T5GemmaConfig:
        """Inverts `describe`; layers are neither stacked nor rematerialised.

        Raises:
          InvalidFile: a field that is unknown or out of bounds.
        """
        fields = {
            "encoder": Field(kinds=(dict,), required=True),
            "decoder": Field(kinds=(dict,), required=True),
            "start_id": Field(kinds=(int,), least=0, most=1 << 24, required=True),
            "version": Field(kinds=(int,), least=1, most=2),
        }
        check_fields(saved, fields, where, unknown=False)
        sides = [
            DecoderConfig.from_description(saved[name], f"{where}, {name}")
            for name in ("encoder", "decoder")
        ]
        try:
            return cls(*sides, saved["start_id"], saved.get("version", 1))
        except InvalidValue as error:
            raise InvalidFile(f"{where}: {error}") from error


def parameters(config: T5GemmaConfig) -> dict[str, Parameter]:
    """Lists all parameters by name; layers are stacked where the configuration has them so."""
    encoder, decoder = config.encoder, config.decoder
    found = {"token_embedder/embedding": table_parameter(decoder)}
    if config.version == 1:
        found["encoder/token_embedder/embedding"] = table_parameter(encoder)
    stacks = {
        "encoder": stack_parameters(encoder),
        "decoder": stack_parameters(decoder, None if config.is_merged else encoder.emb_dim),
    }
    for side, stack in stacks.items():
        found.update({f"{side}/{name}": each for name, each in stack.items()})
    for side, own in (("encoder", encoder), ("decoder", decoder)):
        found[f"{side}/{side}_norm/scale"] = norm_parameter(own, own.emb_dim)
    if not decoder.logits_via_embedding:
        shape, axes, init = table_parameter(decoder)
        found["decoder/logits_dense/kernel"] = (shape[::-1], axes[::-1], init)
    return found


def _encode(
    config: T5GemmaConfig,
    sharding: ModelSharding,
    params: Any,
    tokens: Int[Array, "batch source"],
    parts: RowParts | None = None,
    dropout_rng: Any = None,
) -> Encoded:
    """Encodes prompts, see `text_of`."""
    del dropout_rng  # these models have no dropout
    params, stack = nn.meta.unbox(params), config.encoder
    own = params["encoder"]
    table = (params if config.version == 2 else own)["token_embedder"]["embedding"]
    padding = config.special_ids.padding
    text = text_of(tokens, padding, parts)
    rows = row_sharding(sharding, config.sizes.divided_heads, len(text.tokens))
    visible = rows.scatter(text.mask)

    def layer(params, x, turn, window):
        place = Place(
            text.positions, visible, turn, window,
            both_ways=True, centred=config.version == 2, lengths=text.lengths,
        )  # fmt: skip
        return apply_layer(stack, sharding, rows, params, x, place)[0], None

    x = rows.scatter(embed(stack, table, text.tokens))
    x, _ = run_layers(stack, own, layer, x, rotations(stack, text.positions))
    hidden = norm(stack, x, own["encoder_norm"]["scale"])
    return Encoded(text.whole(hidden), tokens != padding)


def _decode_hidden(
    config: T5GemmaConfig,
    sharding: ModelSharding,
    params: Any,
    encoded: Encoded,
    tokens: Int[Array, "rows length"],
    dropout_rng: Any = None,
) -> Hidden:
    """Decodes given inputs, G rows per prompt, in one pass."""
    del dropout_rng
    params, stack = nn.meta.unbox(params), config.decoder
    rows = row_sharding(sharding, config.sizes.divided_heads, len(encoded.mask))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    visible, states = jnp.ones(tokens.shape, bool), rows.spread(encoded.hidden)
    context = states, rows.scatter(encoded.mask)

    def layer(params, x, turn, window):
        place = Place(positions, visible, turn, window)
        if config.is_merged:
            before = Keys(*context_keys(stack, params[SELF], states), context[1])
            return apply_layer(stack, sharding, rows, params, x, place, before)[0], None
        return apply_layer(stack, sharding, rows, params, x, place, context=context)[0], None

    x = rows.scatter(embed(stack, params["token_embedder"]["embedding"], tokens))
    x, _ = run_layers(stack, params["decoder"], layer, x, rotations(stack, positions))
    return Hidden(rows.gather(norm(stack, x, params["decoder"]["decoder_norm"]["scale"])))


def _init_cache(config, sharding, params, encoded, max_length, samples=1):
    """Prepares the loop, see `gkd.decoders.cached.init_cache`."""
    params, stack, heads = nn.meta.unbox(params), config.decoder, config.sizes.divided_heads
    decoder, block = unstack(params["decoder"]), SELF if config.is_merged else CROSS
    pairs = tuple(
        context_keys(stack, decoder[f"layers_{i}"][block], encoded.hidden)
        for i in range(stack.num_layers)
    )
    start = jnp.zeros(len(encoded.mask) * samples, jnp.int32)
    read = cached.Prompt(pairs, encoded.mask, None, start)
    read = (read, None) if config.is_merged else (None, read)
    stack = dataclasses.replace(stack, stacked_layers=False)
    params = {**params, "decoder": decoder}
    return cached.init_cache(stack, sharding, params, *read, max_length, samples, heads)
