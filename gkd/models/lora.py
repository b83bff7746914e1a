"""Low-rank adapters (LoRA): small trained additions to the kernels of a frozen model."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from gkd.errors import InvalidFile, InvalidValue
from gkd.files.json_files import Field, check_fields, shown

_LAYER = re.compile(r"(^|/)layers_\d+(/|$)")
_FIELDS = {
    "rank": Field(kinds=(int,), least=1, most=1 << 16, required=True),
    "alpha": Field(kinds=(int, float), required=True),
    "targets": Field(kinds=(list,), most=1000, required=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Settings of adapters: W + (alpha / rank) · A · B in place of a kernel W [in, out].

    Attributes:
      rank: r of A [in, r] and B [r, out].
      alpha: factor of the product, divided by the rank.
      targets: names of the modules whose kernels are adapted, anywhere in the model: 'query' is all
        query projections, 'encoder/layers_0/attention/query' one of them.

    Source: Hu et al. 2021 (arXiv 2106.09685), whose targets are the defaults.
    """

    rank: int = 8
    alpha: float | int = 16
    targets: Sequence[str] = ("query", "value")

    def __post_init__(self):
        names = tuple(name.strip("/") for name in self.targets)  # gin has lists
        object.__setattr__(self, "targets", names)

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

    @property
    def names_a_layer(self) -> bool:
        """True if a target is in one layer, which has no name where layers are stacked.

        >>> LoRA(targets=("encoder/layers_0/attention/query",)).names_a_layer
        True
        """
        return any(map(_LAYER.search, self.targets))

    def describe(self) -> dict[str, Any]:
        """Returns the settings as JSON."""
        return {**dataclasses.asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_description(cls, saved: Mapping[str, Any], where: str) -> LoRA:
        """Inverts `describe`.

        Raises:
          InvalidFile: a field is missing, unknown or out of bounds.
        """
        check_fields(saved, _FIELDS, where, unknown=False)
        targets = saved["targets"]
        if not targets or not all(isinstance(name, str) for name in targets):
            raise InvalidFile(f"{where}: targets is {shown(targets)}: names are needed")
        return cls(rank=saved["rank"], alpha=saved["alpha"], targets=tuple(targets))


@flax.struct.dataclass
class Base:
    """A frozen model, to which adapters are added.

    Attributes:
      params: its parameters, which are not trained.
      lora: settings of the adapters.
    """

    params: Any
    lora: LoRA = flax.struct.field(pytree_node=False)

    def with_adapters(self, adapters: Any) -> Any:
        """Adds adapters to the parameters, multiplied out.

        Args:
          adapters: tree of `new_adapters`.

        Returns:
          Parameters for the functions of the model: decoding with them costs no more than without.

        >>> kernel = {"query": {"kernel": jnp.zeros((2, 1))}}
        >>> pair = {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[3.0]])}
        >>> base = Base(kernel, LoRA(rank=1, alpha=2, targets=("query",)))
        >>> base.with_adapters({"query": {"kernel": pair}})["query"]["kernel"].tolist()
        [[6.0], [12.0]]
        """

        def add(base, adapters):
            if not isinstance(base, Mapping):
                a, b = adapters["a"], adapters["b"]
                product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
                return base + (self.lora.scale * product).astype(base.dtype)
            return {
                name: add(value, adapters[name]) if name in adapters else value
                for name, value in base.items()
            }

        return add(self.params, adapters)


def whole(trained: Any, base: Base | None) -> Any:
    """Returns a student's parameters: those that are trained, or its base with trained adapters."""
    return trained if base is None else base.with_adapters(trained)


def new_adapters(boxed: Any, lora: LoRA, rng: Any) -> Any:
    """Makes adapters that change nothing yet: A uniform in ±1/√in, B zero.

    Args:
      boxed: the model's parameters or their shapes, boxed with their logical axes.
      lora: settings of the adapters.
      rng: a key.

    Returns:
      The tree of the adapted kernels, each as {"a": A, "b": B}, boxed as the kernels are; those of
      stacked layers have a leading axis of layers.

    Raises:
      InvalidValue: a target names no kernel of the model.
    """
    tree: dict[str, Any] = {}
    for number, (path, kernel) in enumerate(sorted(_target_kernels(boxed, lora).items())):
        *stack, rows, columns = nn.meta.unbox(kernel).shape
        if lora.rank > min(rows, columns):
            raise InvalidValue(
                f"LORA's rank is {lora.rank}, but {'/'.join(path[:-1])} is [{rows}, {columns}]: "
                f"use {min(rows, columns)} or less"
            )
        bound = 1 / math.sqrt(rows)
        a = jax.random.uniform(
            jax.random.fold_in(rng, number), (*stack, rows, lora.rank), minval=-bound, maxval=bound
        )
        pair = {"a": a, "b": jnp.zeros((*stack, lora.rank, columns))}
        if _is_boxed(kernel):
            *stack, rows, columns = kernel.names
            axes = {"a": (*stack, rows, None), "b": (*stack, None, columns)}
            pair = {name: nn.LogicallyPartitioned(pair[name], axes[name]) for name in pair}
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node |= pair
    return tree


def _target_kernels(boxed: Any, lora: LoRA) -> dict[tuple[str, ...], Any]:
    """The boxed shapes of the kernels to adapt, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_boxed)
    paths = [(tuple(key.key for key in path), leaf) for path, leaf in leaves]
    modules = {path: "/".join(path[:-1]) for path, _ in paths if path[-1] == "kernel"}
    for target in lora.targets:
        single = dataclasses.replace(lora, targets=(target,))
        if not any(map(single.is_target, modules.values())):
            if single.names_a_layer and any("layers" in path for path in modules):
                raise InvalidValue(
                    f"LORA's target {target!r} names one layer, but STUDENT_STACKED has all layers "
                    "in one stack: set it to False, or name the module without its layer"
                )
            names = sorted({path[-2] for path in modules})
            raise InvalidValue(
                f"LORA's target {target!r} names no kernel of the model: choose of "
                f"{', '.join(names)}, or give the path of one"
            )
    return {path: leaf for path, leaf in paths if path in modules and lora.is_target(modules[path])}


def _is_boxed(leaf):
    return isinstance(leaf, nn.meta.AxisMetadata)
