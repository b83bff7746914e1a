"""Runs a T5X `network.Transformer` behind `Seq2SeqModel`, without importing T5X.

T5X's names and shapes of parameters are this project's, so checkpoints serve either. What the
Transformer gives are logits; the interface wants the states that go into its head. Flax's
`intercept_methods` takes them there (after the last dropout) and leaves the head's product out.
Source: t5x/examples/t5/network.py at https://github.com/google-research/t5x.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.linen import partitioning

from gkd.errors import InvalidValue
from gkd.models.interface import Encoded, Hidden, Seq2SeqModel
from gkd.models.t5 import T5Config, as_seq2seq, head_of

_SAME_FIELDS = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "num_encoder_layers",
    "num_decoder_layers",
    "head_dim",
    "mlp_dim",
    "mlp_activations",
    "dropout_rate",
    "logits_via_embedding",
)
_COUNTER = "cache_index"


@dataclasses.dataclass(frozen=True)
class T5XModel:
    """A T5X module as student or teacher.

    Attributes:
      config: the same architecture as this project's; its parameters are named and shaped alike.
      model: the module's own computation behind the interface.
    """

    config: T5Config
    model: Seq2SeqModel


@flax.struct.dataclass
class _Weights:
    """What a decoding step reads: the parameters, the prompts, and T, the cache's length."""

    params: Any
    encoded: Any
    max_length: int = flax.struct.field(pytree_node=False)


def adapt(module: nn.Module) -> T5XModel:
    """Makes a model of a T5X Transformer: `t5x_adapter.adapt.module = @network.Transformer()`.

    Args:
      module: `t5x.examples.t5.network.Transformer(config)`, or one with its methods and parameters.

    Returns:
      The model and its architecture.

    Raises:
      ValueError: the module is another one, e.g. scalable_t5's, whose layers are scanned.
    """
    config = _config_of(module)
    _check_parameters(module, config)
    return T5XModel(
        config,
        Seq2SeqModel(
            init=partial(_init, module),
            encode=partial(_encode, module),
            decode_hidden=partial(_decode_hidden, module),
            init_cache=partial(_init_cache, module),
            decode_step=partial(_decode_step, module),
            head=partial(head_of, config),
            vocab_size=config.vocab_size,
            dtype=config.dtype,
        ),
    )


def _config_of(module: Any) -> T5Config:
    theirs = getattr(module, "config", None)
    absent = [name for name in (*_SAME_FIELDS, "dtype") if not hasattr(theirs, name)]
    absent += [name for name in ("encode", "decode") if not hasattr(module, name)]
    if absent:
        raise InvalidValue(
            f"{type(module).__name__} is no T5X Transformer: it has no {', '.join(absent)}; give "
            "t5x.examples.t5.network.Transformer"
        )
    fields = {name: getattr(theirs, name) for name in _SAME_FIELDS}
    return T5Config(**fields, dtype=jnp.dtype(theirs.dtype).name)


def _check_parameters(module: nn.Module, config: T5Config) -> None:
    key = jax.random.PRNGKey(0)
    theirs = _shapes(jax.eval_shape(partial(_init, module), key))
    ours = _shapes(jax.eval_shape(as_seq2seq(config).init, key))
    if theirs != ours:
        names = sorted({name for name, _ in theirs.items() ^ ours.items()})
        raise InvalidValue(
            f"{type(module).__name__} has other parameters than T5X's examples.t5 Transformer: "
            f"{', '.join(names[:3])}, …; give that one, whose layers are not scanned"
        )


def _shapes(boxed: Any) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(nn.meta.unbox(boxed), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def _init(module, rng):
    tokens = jnp.ones((1, 2), jnp.int32)
    variables = module.init(rng, tokens, tokens, tokens, enable_dropout=False)
    axes = traverse_util.flatten_dict(partitioning.get_axis_names(variables["params_axes"]))
    flat = traverse_util.flatten_dict(variables["params"])
    return traverse_util.unflatten_dict(
        {path: nn.LogicallyPartitioned(leaf, tuple(axes[path])) for path, leaf in flat.items()}
    )


def _dropout(module, dropout_rng):
    """The two arguments that switch dropout on where there are a rate and a key."""
    active = dropout_rng is not None and module.config.dropout_rate > 0
    return {"enable_dropout": active, "rngs": {"dropout": dropout_rng} if active else None}


def _encode(module, params, encoder_input_tokens, dropout_rng=None):
    hidden = module.apply(
        {"params": nn.meta.unbox(params)},
        encoder_input_tokens,
        method="encode",
        **_dropout(module, dropout_rng),
    )
    return Encoded(hidden, encoder_input_tokens > 0)


def _states_before_head(module, variables, encoded, tokens, **options):
    """Applies the decoder -> (states [B, T, E] that go into the head, the changed variables)."""
    taken = []
    rows = len(tokens) // len(encoded.mask)  # of every prompt
    encoded = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), encoded)

    def take_head_input(head, inputs, named_inputs, context):
        at = (context.module.name, context.method_name)
        if at not in (("logits_dense", "__call__"), ("token_embedder", "attend")):
            return head(*inputs, **named_inputs)
        taken.append(inputs[0])
        return inputs[0]  # in the logits' place; nobody reads them

    with nn.intercept_methods(take_head_input):
        _, changed = module.apply(
            variables,
            encoded.hidden,
            encoded.mask.astype(jnp.int32),  # T5X asks for the prompts, for this mask only
            tokens,
            jnp.ones_like(tokens),  # and for the targets: where they are not 0 it attends
            method="decode",
            **options,
        )
    return taken[0], changed


def _decode_hidden(module, params, encoded, decoder_input_tokens, dropout_rng=None):
    variables = {"params": nn.meta.unbox(params)}
    options = {"mutable": [], **_dropout(module, dropout_rng)}
    hidden, _ = _states_before_head(module, variables, encoded, decoder_input_tokens, **options)
    return Hidden(hidden)


def _init_cache(module, params, encoded, max_length, samples=1):
    weights = _Weights(nn.meta.unbox(params), encoded, max_length)
    tokens = jnp.zeros((encoded.mask.shape[0] * samples, max_length), jnp.int32)
    options = {"mutable": ["cache"], "decode": True, "enable_dropout": False}

    def empty_cache():
        variables = {"params": weights.params}
        return _states_before_head(module, variables, encoded, tokens, **options)[1]["cache"]

    shapes = traverse_util.flatten_dict(jax.eval_shape(empty_cache))
    # The counter is the loop's position: what is left has one row for every row of the batch.
    shapes = {path: leaf for path, leaf in shapes.items() if path[-1] != _COUNTER}
    return weights, {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}


def _decode_step(module, weights, cache, tokens, position):
    counter = {(*path[:-1], _COUNTER): jnp.asarray(position, jnp.int32) for path in cache}
    variables = {
        "params": weights.params,
        "cache": traverse_util.unflatten_dict({**cache, **counter}),
    }
    options = {"mutable": ["cache"], "decode": True, "enable_dropout": False}
    hidden, changed = _states_before_head(
        module,
        variables,
        weights.encoded,
        tokens[:, None],
        max_decode_length=weights.max_length,
        **options,
    )
    changed = traverse_util.flatten_dict(changed["cache"])
    return hidden[:, 0], {path: changed[path] for path in cache}
