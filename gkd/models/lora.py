"""Low-rank adapters (LoRA): a model of a frozen base whose kernels get small trained additions."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gkd.errors import InvalidValue
from gkd.models.interface import Seq2SeqModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Settings of low-rank adapters: W + (alpha / rank) · A · B in place of a kernel W [in, out].

    Attributes:
      rank: r of A [in, r] and B [r, out].
      alpha: factor of the product, divided by the rank.
      targets: names of the modules whose kernels are adapted, anywhere in the model: 'query' is all
        query projections, 'encoder/layers_0/attention/query' one of them.

    Source: Hu et al. 2021 (arXiv 2106.09685).
    """

    rank: int
    alpha: float | int
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Factor of A · B."""
        return self.alpha / self.rank

    def is_target(self, module: str) -> bool:
        """Returns True if the kernel of a module is adapted.

        Args:
          module: path of the module, joined by '/'; stacked layers have no number.

        >>> LoRA(rank=1, alpha=1, targets=("query",)).is_target("encoder/layers_0/attention/query")
        True
        """
        return any(module == name or module.endswith(f"/{name}") for name in self.targets)


@flax.struct.dataclass
class Adapted:
    """The parameters of an adapted model.

    Attributes:
      base: parameters of the base, which are not trained.
      adapters: tree of the base's kernels that are adapted, each as {"a": A, "b": B}; kernels of
        stacked layers have a leading axis of layers.
    """

    base: Any
    adapters: Any


def adapt(model: Seq2SeqModel, lora: LoRA) -> Seq2SeqModel:
    """Builds the model that runs with `Adapted` parameters.

    The additions are multiplied out once per call of a function, so that decoding costs what it
    costs without them.

    Args:
      model: the base.
      lora: settings of the adapters.

    Returns:
      The model; its `init` makes the adapters alone: A uniform in ±1/√in, B zero.

    Raises:
      InvalidValue: a target names no kernel of the model.
    """
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    kernels = _target_kernels(boxed, lora)

    def with_merged(function):
        @functools.wraps(function)
        def call(params: Adapted, *arguments, **options):
            return function(merged(params, lora), *arguments, **options)

        return call

    functions = {
        name: with_merged(getattr(model, name))
        for name in ("encode", "decode_hidden", "init_cache", "head")
    }
    return dataclasses.replace(model, init=functools.partial(_init, kernels, lora), **functions)


def merged(params: Adapted, lora: LoRA) -> Any:
    """Adds the adapters to the base.

    Args:
      params: base and adapters.
      lora: settings of the adapters.

    Returns:
      A tree as the base's.

    >>> kernel = {"query": {"kernel": jnp.zeros((2, 1))}}
    >>> pair = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[3.0]])}
    >>> both = Adapted(kernel, {"query": {"kernel": pair}})
    >>> merged(both, LoRA(rank=1, alpha=2, targets=("query",)))["query"]["kernel"].tolist()
    [[6.0], [12.0]]
    """

    def add(base, adapters):
        if not isinstance(base, Mapping):
            product = jnp.matmul(adapters["a"], adapters["b"], precision=jax.lax.Precision.HIGHEST)
            return base + (lora.scale * product).astype(base.dtype)
        return {
            name: add(value, adapters[name]) if name in adapters else value
            for name, value in base.items()
        }

    return add(params.base, params.adapters)


def _target_kernels(boxed: Any, lora: LoRA) -> dict[tuple[str, ...], Any]:
    """The boxed shapes of the kernels to adapt, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_boxed)
    paths = [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
    modules = {path: "/".join(path[:-1]) for path, _ in paths if path[-1] == "kernel"}
    for target in lora.targets:
        single = dataclasses.replace(lora, targets=(target,))
        if not any(map(single.is_target, modules.values())):
            names = sorted({path[-2] for path in modules})
            raise InvalidValue(
                f"LORA's target {target!r} names no kernel of the model: choose of "
                f"{', '.join(names)}, or give the path of one"
            )
    return {path: leaf for path, leaf in paths if path in modules and lora.is_target(modules[path])}


def _init(kernels, lora, rng):
    """The adapters, boxed with the axes of the kernels that they belong to."""
    tree: dict[str, Any] = {}
    for number, (path, kernel) in enumerate(sorted(kernels.items())):
        shape = nn.meta.unbox(kernel).shape
        *stack, rows, columns = shape
        names = kernel.names if _is_boxed(kernel) else (None,) * len(shape)
        bound = 1 / math.sqrt(rows)
        a = jax.random.uniform(
            jax.random.fold_in(rng, number), (*stack, rows, lora.rank), minval=-bound, maxval=bound
        )
        b = jnp.zeros((*stack, lora.rank, columns))
        pair = {"a": (a, (*names[:-1], None)), "b": (b, (*names[:-2], None, names[-1]))}
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        for name, (value, axes) in pair.items():
            node[name] = nn.LogicallyPartitioned(value, axes) if _is_boxed(kernel) else value
    return tree


def _is_boxed(leaf):
    return isinstance(leaf, nn.meta.AxisMetadata)
