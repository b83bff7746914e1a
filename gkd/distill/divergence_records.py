"""The record of a divergence: its function, its own parameters, and the methods that can use it.

A divergence is added by one function under `@divergence(…)`, in gkd.distill.divergences or in a
module that `--allow_module` names. The loss, the evaluation and the checks of a method read the
record, and nothing else, for what a divergence needs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from gkd.errors import InvalidValue


@dataclasses.dataclass(frozen=True, kw_only=True)
class DivergenceRecord:
    """A divergence with everything that the rest of the code needs of it.

    Attributes:
      function: (student_logits, teacher_logits, *, temperature, valid, and its own parameters) ->
        nats per token; with `needs_sampled_token` the token ids are a third positional argument.
      name: the name that messages print.
      parameters: names of its own parameters that have no default.
      options: names of its own parameters that have a default.
      values: the parameters that are bound, by name.
      needs_sampled_token: the divergence is estimated from the sampled token alone.
      on_policy_only: the divergence is defined on the student's own samples only.
      finite_on_truncation: the value is finite where a renormalised top-k teacher gives probability
        0 to an id that the student may produce.
      reported: the parameter settings that evaluation reports, by metric name.
    """

    function: Callable[..., Any]
    name: str
    parameters: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    needs_sampled_token: bool = False
    on_policy_only: bool = False
    finite_on_truncation: bool = True
    reported: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, hash=False)

    def __call__(
        self,
        student_logits: Any,
        teacher_logits: Any,
        targets: Any = None,
        *,
        temperature: Any = 1.0,
        valid: Any = None,
    ) -> Any:
        """Computes the divergence of every token with the bound parameters.

        Args:
          student_logits: [..., V].
          teacher_logits: [..., V].
          targets: int32 [...], the token ids; used by a divergence of sampled tokens only.
          temperature: divides the logits, see `gkd.distill.logits.temperature_pair`.
          valid: bool [V], false for ids that carry no probability.

        Returns:
          float32 [...], in nats.
        """
        sampled = (targets,) if self.needs_sampled_token else ()
        return self.function(
            student_logits, teacher_logits, *sampled,
            temperature=temperature, valid=valid, **self.values,
        )  # fmt: skip

    def bind(self, **parameters: Any) -> DivergenceRecord:
        """Sets parameters of the divergence.

        Args:
          **parameters: values by name, for parameters that have none yet.

        Returns:
          The record with these values.

        Raises:
          ValueError: an unknown parameter, one that is bound already, or one that is still missing.

        >>> from gkd.distill import divergences
        >>> record_of(divergences.generalized_jsd).bind(beta=0.9).values
        {'beta': 0.9}
        >>> record_of(divergences.generalized_jsd).bind()
        Traceback (most recent call last):
        gkd.errors.InvalidValue: generalized_jsd needs a value of beta
        """
        bound = self._with_values(parameters)
        missing = [name for name in self.parameters if name not in bound.values]
        if missing:
            raise InvalidValue(f"{self.name} needs a value of {', '.join(missing)}")
        return bound

    def _with_values(self, parameters: Mapping[str, Any]) -> DivergenceRecord:
        known = (*self.parameters, *self.options)
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise InvalidValue(
                f"{self.name} has no parameter {', '.join(unknown)}: it takes "
                f"{', '.join(known) or 'none'}"
            )
        again = [name for name in parameters if name in self.values]
        if again:
            raise InvalidValue(
                f"{again[0]} of {self.name} is already bound to {self.values[again[0]]}: set it "
                "once"
            )
        return dataclasses.replace(self, values={**self.values, **parameters})


_REGISTERED: list[DivergenceRecord] = []


def divergence(
    *,
    parameters: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    needs_sampled_token: bool = False,
    on_policy_only: bool = False,
    finite_on_truncation: bool = True,
    reported: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated function as a divergence and returns it unchanged.

    Args:
      parameters, options, needs_sampled_token, on_policy_only, finite_on_truncation: see
        `DivergenceRecord`.
      reported: the parameter settings that evaluation reports, by metric name; None reports none.

    Returns:
      The decorator.

    >>> @divergence(options=("power",))
    ... def power_distance(student_logits, teacher_logits, *, power=2, temperature=1.0, valid=None):
    ...     return abs(student_logits - teacher_logits) ** power
    >>> record_of(power_distance).bind(power=3)(1.0, 3.0)
    8.0
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        record = DivergenceRecord(
            function=function,
            name=function.__name__,
            parameters=parameters,
            options=options,
            needs_sampled_token=needs_sampled_token,
            on_policy_only=on_policy_only,
            finite_on_truncation=finite_on_truncation,
            reported=reported or {},
        )
        _REGISTERED.append(record)
        return function

    return register


def record_of(divergence: Callable[..., Any] | DivergenceRecord) -> DivergenceRecord:
    """Finds the record of a divergence.

    Args:
      divergence: a registered function, the same function wrapped (by gin or `jax.jit`) or in a
        `functools.partial`, or a record, which is returned as it is. A function that nobody
        registered gets a record without parameters.

    Returns:
      The record. It calls what was given, with the parameters of a partial bound.

    Raises:
      ValueError: a partial with positional arguments, or with parameters that are not its
        divergence's.
    """
    if isinstance(divergence, DivergenceRecord):
        return divergence
    if isinstance(divergence, functools.partial):
        record = record_of(divergence.func)
        if divergence.args:
            raise InvalidValue(f"a partial of {record.name} binds positional arguments: name them")
        if _registered(divergence.func) is None:  # its parameters are known to nobody else
            record = dataclasses.replace(record, options=tuple(divergence.keywords))
        return record._with_values(divergence.keywords)
    registered = _registered(divergence)
    if registered is not None:
        return dataclasses.replace(registered, function=divergence)
    return DivergenceRecord(
        function=divergence, name=getattr(divergence, "__name__", str(divergence))
    )


def registered_divergences() -> tuple[DivergenceRecord, ...]:
    """Lists the records of all divergences that were registered, in the order of their modules."""
    return tuple(_REGISTERED)


def _registered(function: Any) -> DivergenceRecord | None:
    """The record under which a function, or the function that it wraps, was registered."""
    while function is not None:
        for record in _REGISTERED:
            if record.function is function:
                return record
        function = getattr(function, "__wrapped__", None)
    return None
