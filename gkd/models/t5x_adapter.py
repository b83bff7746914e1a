"""Runs a T5X `network.Transformer` behind `Seq2SeqModel`, without importing T5X.

Parameter names and shapes are T5X's in this project, so that checkpoints serve either. The
Transformer returns logits, the interface needs the hidden states before its head. Flax's
`intercept_methods` takes them there (after the last dropout) and skips the head's product.
Source: t5x/examples/t5/network.py at https://github.com/google-research/t5x.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util
from flax.linen import partitioning

from gkd.errors import InvalidValue
from gkd.models.interface import Encoded, Hidden, Seq2SeqModel
from gkd.models.t5 import T5Config, as_seq2seq, head_of
from gkd.parallel.model_sharding import UNSHARDED, ModelSharding

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
    """A T5X module as an architecture (see `gkd.models.architecture`); made by `adapt`.

    Attributes:
      module: the T5X Transformer, whose own code runs.
      config: the same architecture as this project's T5, with equal parameter names and shapes.
      configurable: False: how the module runs is fixed in its own gin.
    """

    module: Any
    config: T5Config
    configurable: ClassVar[bool] = False

    family = property(lambda self: self.config.family)
    vocab_size = property(lambda self: self.config.vocab_size)
    dtype = property(lambda self: self.config.dtype)
    dropout_rate = property(lambda self: self.config.dropout_rate)
    stacked_layers = property(lambda self: self.config.stacked_layers)
    remat = property(lambda self: self.config.remat)
    special_ids = property(lambda self: self.config.special_ids)
    sizes = property(lambda self: self.config.sizes)

    def build(self, sharding: ModelSharding = UNSHARDED) -> Seq2SeqModel:
        """Builds the module's pure functions.

        Args:
          sharding: the mesh on which they run. T5X reads its logical rules from Flax's context, so
            every function enters that context for its module.
        """
        module = self.module

        def on_mesh(function):
            def run(*arguments, **named):
                with _ambient(sharding):
                    return function(module, *arguments, **named)

            return run

        return Seq2SeqModel(
            init=partial(_init, module),
            encode=on_mesh(partial(_with_dropout_rate, _encode, self.dropout_rate)),
            decode_hidden=on_mesh(partial(_with_dropout_rate, _decode_hidden, self.dropout_rate)),
            init_cache=on_mesh(_init_cache),
            decode_step=on_mesh(_decode_step),
            head=partial(head_of, self.config, sharding=sharding),
            vocab_size=self.vocab_size,
            dtype=self.dtype,
            special_ids=self.special_ids,
        )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every parameter by name."""
        return self.config.parameter_shapes()

    def with_execution(self, **changes: Any) -> T5XModel:
        """Returns the architecture, if nothing is to change but dropout to be switched off.

        Raises:
          InvalidValue: another change, which belongs into the module's own gin.
        """
        wanted = {name: value for name, value in changes.items() if value is not None}
        rate = wanted.pop("dropout_rate", self.dropout_rate)
        if rate not in (0, self.dropout_rate):
            wanted["dropout_rate"] = rate
        if wanted:
            raise InvalidValue(f"a T5X module: set its {next(iter(wanted))} in its own gin")
        return dataclasses.replace(self, config=self.config.with_execution(dropout_rate=rate))

    def describe(self) -> dict[str, Any]:
        """Describes the T5 whose checkpoints the module reads and writes."""
        return self.config.describe()


@flax.struct.dataclass
class _Weights:
    """A decoding step's invariants: parameters, prompts, and T, the cache's length."""

    params: Any
    encoded: Any
    max_length: int = flax.struct.field(pytree_node=False)


@contextlib.contextmanager
def _ambient(sharding):
    if sharding.mesh is None:
        yield
        return
    mesh = sharding.mesh.abstract_mesh
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(sharding.rules):
        yield


def adapt(module: nn.Module) -> T5XModel:
    """Makes an architecture of a T5X Transformer: `t5x_adapter.adapt.module = @Transformer()`.

    Args:
      module: `t5x.examples.t5.network.Transformer(config)`, or one with its methods and parameters.

    Returns:
      The architecture.

    Raises:
      InvalidValue: the module is another one, e.g. scalable_t5's, whose layers are scanned.
    """
    config = _config_of(module)
    _check_parameters(module, config)
    return T5XModel(module, config)


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


def _with_dropout_rate(function, rate, module, *arguments, dropout_rng=None):
    """Passes the dropout key on only where the rate is above 0."""
    return function(module, *arguments, dropout_rng=dropout_rng if rate > 0 else None)


def _dropout(module, dropout_rng):
    """Returns the two arguments that switch dropout on where there are a rate and a key."""
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
    """Applies the decoder: (states [B, T, E] before the head, the changed variables)."""
    taken = []
    rows = len(tokens) // len(encoded.mask)  # of every prompt
    encoded = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), encoded)

    def take_head_input(head, inputs, named_inputs, context):
        at = (context.module.name, context.method_name)
        if at not in (("logits_dense", "__call__"), ("token_embedder", "attend")):
            return head(*inputs, **named_inputs)
        taken.append(inputs[0])
        return inputs[0]  # in place of the logits, which are not used

    with nn.intercept_methods(take_head_input):
        _, changed = module.apply(
            variables,
            encoded.hidden,
            encoded.mask.astype(jnp.int32),  # T5X takes the prompts, for this mask only
            tokens,
            jnp.ones_like(tokens),  # and the targets: it attends where they are not 0
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
    # The counter is the loop's position; all else has one row per row of the batch.
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
