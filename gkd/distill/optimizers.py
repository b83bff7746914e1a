"""Optimizers with T5X's defaults and the learning-rate schedule, built from optax alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from gkd.errors import InvalidValue

_STACK = "layers"
_INWARD = ("query", "key", "value")


def adafactor(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    min_dim_size_to_factor: int = 128,
    multiply_by_parameter_scale: bool = True,
) -> optax.GradientTransformation:
    """Adafactor as T5X configures it, with the statistics of stacked layers kept per layer.

    Args:
      learning_rate: relative to each parameter's root mean square, a number or a schedule.
      weight_decay: share of every matrix removed at each step, not multiplied by the learning rate
        (T5X's and optax's convention; AdamW's differs). Norm scales never decay.
      max_norm: clip gradients to this global norm first; None does not clip.
      decay_rate: exponent of the second moment's decay, 1 − t**−decay_rate.
      clipping_threshold: largest root mean square of a parameter's scaled update.
      min_dim_size_to_factor: second moments of matrices with two sides this long are factored, and
        as in T5X those of attention kernels of any size where each layer has its relative bias
        (scalable_t5) or a kernel has three axes.
      multiply_by_parameter_scale: makes the learning rate relative (see above).

    Returns:
      The optimizer.

    Source: Shazeer & Stern 2018 (arXiv 1804.04235).
    """
    steps = [  # as in `optax.adafactor`
        _scale_by_factored_rms(decay_rate, min_dim_size_to_factor),
        optax.clip_by_block_rms(clipping_threshold),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
    ]
    if multiply_by_parameter_scale:
        steps.append(optax.scale_by_param_block_rms())
    if weight_decay:
        steps.append(optax.add_decayed_weights(weight_decay, _decays))
    optimizer = optax.chain(*steps, optax.scale(-1))
    return _clip_first(per_layer(optimizer), max_norm)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW; it works element by element, so stacked layers need no care.

    Args:
      learning_rate: absolute, a number or a schedule.
      weight_decay: multiplied by the learning rate; norm scales never decay.
      max_norm: clip gradients to this global norm first; None does not clip.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.

    Returns:
      The optimizer.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101).
    """
    optimizer = optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_decays
    )
    return _clip_first(optimizer, max_norm)


def _scale_by_factored_rms(
    decay_rate: float = 0.8, min_dim_size_to_factor: int = 128
) -> optax.GradientTransformation:
    """Builds `optax.scale_by_factored_rms` with T5X's choice of the parameters that are factored.

    T5X's `standard_logical_factor_rules` apply to parameters of three axes and more; those of two
    axes fall back to the paper's heuristic (both sides at least 128). T5X therefore factors the
    kernels [embed, joined] of examples/t5 by their size, but the attention kernels [embed, heads,
    kv] of scalable_t5 always, as the matrix of `embed` and of heads and kv together. Here those
    kernels are joined too, and are recognised by the relative bias that every layer of a
    scalable_t5 has. Where layers are scanned, T5X also factors a small MLP; this does not.

    Args:
      decay_rate: exponent of the second moment's decay, 1 − t**−decay_rate.
      min_dim_size_to_factor: parameters of two axes are factored from this size of both.

    Returns:
      The transformation; its state is an `optax.FactoredState` of trees like the parameters.

    Source: t5x/adafactor.py at https://github.com/google-research/t5x.
    """
    by_size = optax.scale_by_factored_rms(
        decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor
    )
    always = optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=1)

    def rules(tree):
        """(transformation, the matrix's shape or None) of every parameter of a tree."""
        paths = jax.tree_util.tree_flatten_with_path(tree)[0]
        names = [_names(path) for path, _ in paths]
        biases = {name[:-2] for name in names if name[-2:-1] == ("relpos_bias",)}
        matrices = [
            _attention_matrix(name, leaf.shape, biases)
            for name, (_, leaf) in zip(names, paths, strict=True)
        ]
        return [(by_size if matrix is None else always, matrix) for matrix in matrices]

    def init(params):
        leaves, structure = jax.tree.flatten(params)
        states = [
            rule.init(_as_matrix(leaf, matrix))
            for leaf, (rule, matrix) in zip(leaves, rules(params), strict=True)
        ]
        return _joined(states, structure, jax.numpy.zeros([], jax.numpy.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("Adafactor needs the parameters beside their gradients")
        leaves, structure = jax.tree.flatten(updates)
        old = zip(*(structure.flatten_up_to(tree) for tree in state[1:]), strict=True)
        new_leaves, states = [], []
        for leaf, param, moments, (rule, matrix) in zip(
            leaves, structure.flatten_up_to(params), old, rules(params), strict=True
        ):
            before = optax.FactoredState(state.count, *moments)
            scaled, after = rule.update(_as_matrix(leaf, matrix), before, _as_matrix(param, matrix))
            new_leaves.append(scaled.reshape(leaf.shape))
            states.append(after)
        count = optax.safe_increment(state.count)
        return jax.tree.unflatten(structure, new_leaves), _joined(states, structure, count)

    return optax.GradientTransformation(init, update)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _attention_matrix(
    name: tuple[str, ...], shape: tuple[int, ...], biases: set[tuple[str, ...]]
) -> tuple[int, int] | None:
    """[rows, columns] of an attention kernel that T5X factors whatever its size; None of others."""
    if len(name) < 2 or name[-1] != "kernel" or name[-2] not in (*_INWARD, "out"):
        return None
    if len(shape) == 3:  # [embed, heads, kv], or for `out` [heads, kv, embed]
        rows = 1 if name[-2] in _INWARD else 2
        return math.prod(shape[:rows]), math.prod(shape[rows:])
    return tuple(shape) if len(shape) == 2 and name[:-3] in biases else None


def _as_matrix(leaf: jax.Array, matrix: tuple[int, int] | None) -> jax.Array:
    return leaf if matrix is None else leaf.reshape(matrix)


def _joined(states: list[Any], structure: Any, count: jax.Array) -> optax.FactoredState:
    """The states of single parameters as one state of trees."""
    trees = zip(*(state[1:] for state in states), strict=True) if states else ((), (), ())
    return optax.FactoredState(count, *(jax.tree.unflatten(structure, tree) for tree in trees))


def warmup_constant_cooldown(
    peak: float, warmup_steps: int, total_steps: int, cooldown_steps: int = 0
) -> optax.Schedule:
    """Makes a learning-rate schedule: linear from 0 to `peak`, constant, linear to 0 at the end.

    Args:
      peak: the plateau's learning rate.
      warmup_steps: steps of the rise; 0 starts at the peak.
      total_steps: the last step of the run.
      cooldown_steps: steps of the fall; 0 stays at the peak.

    Returns:
      A function of the step.

    Raises:
      InvalidValue: the rise and the fall do not fit into the run.

    >>> schedule = warmup_constant_cooldown(2.0, 10, total_steps=100, cooldown_steps=20)
    >>> [float(schedule(step)) for step in (0, 5, 10, 80, 90, 100)]
    [0.0, 1.0, 2.0, 2.0, 1.0, 0.0]
    """
    if warmup_steps + cooldown_steps > total_steps:
        raise InvalidValue(
            f"warm-up ({warmup_steps} steps) and cool-down ({cooldown_steps}) exceed the run's "
            f"{total_steps} steps: shorten them"
        )
    parts = [optax.constant_schedule(peak)]
    boundaries = []
    if warmup_steps:
        parts.insert(0, optax.linear_schedule(0.0, peak, warmup_steps))
        boundaries.append(warmup_steps)
    if cooldown_steps:
        parts.append(optax.linear_schedule(peak, 0.0, cooldown_steps))
        boundaries.append(total_steps - cooldown_steps)
    return optax.join_schedules(parts, boundaries)


def update_if(
    finite: Any,
    optimizer: optax.GradientTransformation,
    gradients: optax.Updates,
    params: optax.Params,
    opt_state: optax.OptState,
) -> tuple[optax.Params, optax.OptState, Any]:
    """One update where `finite` holds and the updates' norm is finite too, else nothing changes.

    A TPU computes the update and selects: a branch would make it copy the state. A CPU branches,
    and then needs no room for the old state and the updates beside the new state. It looks at the
    updates of its smallest parameter alone: from finite gradients only a learning rate makes
    updates that overflow, and it does so everywhere.

    Args:
      finite: bool [], traced; false where a gradient is not finite.
      optimizer: an optax gradient transformation.
      gradients, params: trees of one structure.
      opt_state: state of the optimizer.

    Returns:
      The parameters, the optimizer's state, and bool [], whether they are new.
    """

    updates_of = jax.jit(optimizer.update, inline=True)  # traced once for its three uses

    def select(*old):
        updates, new_state = updates_of(gradients, opt_state, params)
        sound = finite & jnp.isfinite(optax.global_norm(updates))
        new = optax.apply_updates(params, updates), new_state
        return *jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, old), sound

    def branch(*old):
        updates, _ = updates_of(gradients, opt_state, params)
        smallest = min(jax.tree.leaves(updates), key=lambda leaf: leaf.size)
        sound = finite & jnp.isfinite(optax.global_norm(smallest))
        return *jax.lax.cond(sound, update, lambda *old: old, *old), sound

    def update(params, opt_state):
        updates, opt_state = updates_of(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.platform_dependent(params, opt_state, default=select, cpu=branch)


class PerLayerState(NamedTuple):
    """One optimizer state for the ordinary parameters, one with a layer axis for each stack."""

    rest: Any
    stacks: dict[str, Any]


def per_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs an optimizer on stacked layers as on separate ones.

    Adafactor's means, root mean squares and factored axes are over one parameter; over a whole
    stack they would make it another optimizer. Whatever spans parameters (a global norm) belongs
    outside.

    Args:
      optimizer: the transformation to run. Subtrees under a key "layers", whose leaves have a
        leading layer axis, are mapped over that axis; all other parameters are passed as they are.

    Returns:
      The optimizer for trees with and without stacks.
    """

    def init(params):
        rest, stacks = _split(params)
        return PerLayerState(
            rest=optimizer.init(rest),
            stacks={name: jax.vmap(optimizer.init)(stack) for name, stack in stacks.items()},
        )

    def update(updates, state, params=None):
        rest, stacks = _split(updates)
        rest_params, stack_params = _split(params)
        rest, rest_state = optimizer.update(rest, state.rest, rest_params)
        new_stacks, stack_states = {}, {}
        for name, stack in stacks.items():
            new_stacks[name], stack_states[name] = jax.vmap(optimizer.update)(
                stack, state.stacks[name], stack_params[name]
            )
        return _merge(rest, new_stacks), PerLayerState(rest_state, stack_states)

    return optax.GradientTransformation(init, update)


def _split(tree):
    """A nested dict -> (what is not stacked, {path of a stack: its leaves by path})."""
    rest, stacks = {}, {}
    for path, leaf in traverse_util.flatten_dict(tree).items():
        if _STACK in path:
            depth = path.index(_STACK) + 1
            stacks.setdefault("/".join(path[:depth]), {})[path[depth:]] = leaf
        else:
            rest[path] = leaf
    stacks = {name: traverse_util.unflatten_dict(stack) for name, stack in stacks.items()}
    return traverse_util.unflatten_dict(rest), stacks


def _merge(rest, stacks):
    """Undoes `_split`."""
    leaves = traverse_util.flatten_dict(rest)
    for name, stack in stacks.items():
        for path, leaf in traverse_util.flatten_dict(stack).items():
            leaves[(*name.split("/"), *path)] = leaf
    return traverse_util.unflatten_dict(leaves)


def _decays(params):
    """Selects the parameters for weight decay: all but the norms' scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params)


def _clip_first(optimizer, max_norm):
    if max_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(max_norm), optimizer)
