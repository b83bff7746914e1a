"""Checks bindings before gin applies them, so that each mistake gets a one-line error."""

import difflib
import functools
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gin

from gkd.configuration.gin_files import (
    Binding,
    ConfigError,
    GinReader,
    Macro,
    Reference,
    Source,
    parse_statements,
    references_in,
)

DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"
# Modules that `--gin.` arguments may use besides the imports of the run's own gin files.
COMMAND_LINE_MODULES = {
    "divergences": "gkd.distill",
    "experiment": "gkd.configuration",
    "evaluate": "gkd.evaluate",
    "inner_layer": "gkd.auxiliary_losses",
    "losses": "gkd.distill",
    "metrics": "gkd.metrics",
    "mixing": "gkd.distill",
    "optimizers": "gkd.distill",
    "replay": "gkd.distill",
    "lora": "gkd.models",
    "reward_functions": "gkd.metrics",
    "sweep": "gkd.sweep",
    "t5": "gkd.models",
    "teacher_inputs": "gkd.data",
    "tasks": "gkd.data",
    "train": "gkd.train",
    "vocabularies": "gkd.vocabularies",
    "witness": "gkd.auxiliary_losses",
}
_BUILTINS = types.SimpleNamespace(macro=gin.config.macro, singleton=gin.config.singleton)
_SHOWN = 10  # greatest number of names that an error lists if none is similar


def suggestion(name: str, candidates: Iterable[str], kind: str = "") -> str:
    """Suggests a correction of a misspelt name: `; did you mean LAMBDA?`.

    Args:
      name: the unknown name.
      candidates: the known names.
      kind: description of the candidates; if given, a short list is shown if none is similar.

    Returns:
      The end of an error message, empty if there is nothing to suggest.

    >>> suggestion("LAMDA", ["LAMBDA", "BETA"])
    '; did you mean LAMBDA?'
    """
    known = sorted(set(candidates))
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    if close:
        return f"; did you mean {by_lower[close[0]]}?"
    if kind and 0 < len(known) <= _SHOWN:
        return f" ({kind}: {', '.join(known)})"
    return ""


def override_imports(overrides: Sequence[str], reader: GinReader) -> list[Any]:
    """Lists the imports for the overrides: gkd's public modules, and those of the run's files.

    A public module is imported only if an override mentions its name, to save start-up time.

    Args:
      overrides: texts NAME=VALUE.
      reader: the files, read.

    Returns:
      Import statements.
    """
    text = " ".join(overrides)
    lines = ["from __gin__ import dynamic_registration"]
    for name, package in COMMAND_LINE_MODULES.items():
        if f"{name}." in text:
            lines.append(f"from {package} import {name}")
    imports = [*parse_statements("\n".join(lines), "command line")]
    for source in reader.sources:
        imports += [item for item in source.imports if item.module != DYNAMIC_REGISTRATION]
    return imports


def check(reader: GinReader, verb: Callable[..., Any], verb_name: str) -> None:
    """Checks all bindings.

    Args:
      reader: all files and overrides, read.
      verb: the function that will be called without arguments.
      verb_name: its name in gin files, e.g. `train.train`.

    Raises:
      ConfigError: a module, function, parameter or macro is unknown, a macro is unused, or a macro
        or required parameter has no value.
    """
    overrides = [binding.source for binding in reader.bindings if not binding.source.path]
    symbols = {id(source): _import_all(source) for source in (*reader.sources, *overrides)}
    functions = {}
    for binding in reader.bindings:
        names = symbols[id(binding.source)]
        if not binding.macro:
            functions[binding.target] = _check_binding(binding, names)
        for reference in references_in(binding.value):
            if isinstance(reference, Reference):
                _resolve(reference.selector, names, binding, "@")
    _check_macros(reader)
    _check_required(reader, symbols, functions, verb, verb_name)


def _import_all(source: Source) -> dict[str, Any]:
    """Executes the imports of a source, and returns the imported names as gin sees them."""
    names: dict[str, Any] = {}
    for position, statement in enumerate(source.imports):
        place = source.place(statement.location.line_num)
        if statement.module == DYNAMIC_REGISTRATION:
            if position:
                raise ConfigError(f"{place}: dynamic_registration must be the first import")
            names["gin"] = _BUILTINS
            continue
        try:
            module = importlib.import_module(statement.module)
        except ModuleNotFoundError as error:
            if not error.name or not f"{statement.module}.".startswith(f"{error.name}."):
                raise  # the module exists, but one of its own imports does not
            hint = _module_suggestion(error.name)
            raise ConfigError(f"{place}: no module {error.name}{hint}") from None
        whole = statement.is_from or statement.alias
        root = module if whole else importlib.import_module(statement.module.split(".")[0])
        names[statement.bound_name()] = root
    return names


def _module_suggestion(missing: str) -> str:
    package, _, name = missing.rpartition(".")
    if not package:
        return ""
    paths = getattr(importlib.import_module(package), "__path__", [])
    return suggestion(name, (module.name for module in pkgutil.iter_modules(paths)), package)


def _resolve(selector: str, names: dict[str, Any], binding: Binding, sign: str = "") -> Any:
    """Finds the object of a selector through the imports of the binding's source."""
    head, *rest = selector.split(".")
    if "gin" not in names and binding.source.path:
        raise ConfigError(
            f"{binding.source.name}: its first import must be "
            "`from __gin__ import dynamic_registration`"
        )
    if head not in names:
        imported = {*names, *(() if binding.source.path else COMMAND_LINE_MODULES)} - {"gin"}
        raise ConfigError(
            f"{binding.place}: {sign}{selector}: {head} is not imported"
            f"{suggestion(head, imported, 'known')}"
        )
    value = names[head]
    for depth, name in enumerate(rest, start=1):
        if not hasattr(value, name):
            owner = ".".join([head, *rest][:depth])
            public = [known for known in dir(value) if not known.startswith("_")]
            raise ConfigError(
                f"{binding.place}: {sign}{selector}: {owner} has no {name}"
                f"{suggestion(name, public, owner)}"
            )
        value = getattr(value, name)
    if not callable(value):
        raise ConfigError(
            f"{binding.place}: {sign}{selector} is a {type(value).__name__}, not a function"
        )
    return value


@functools.lru_cache(maxsize=256)  # `train` has dozens of bindings, and a sweep hundreds of cells
def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters that a binding may set; None if any name is accepted."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return dict(parameters)


def _check_binding(binding: Binding, names: dict[str, Any]) -> Callable[..., Any]:
    """Checks the function and the parameter of `function.parameter = value`."""
    function = _resolve(binding.selector, names, binding)
    parameters = _parameters(function)
    if parameters is not None and binding.parameter not in parameters:
        raise ConfigError(
            f"{binding.place}: {binding.selector} has no parameter {binding.parameter}"
            f"{suggestion(binding.parameter, parameters, 'parameters')}"
        )
    return function


def _check_macros(reader: GinReader) -> None:
    """Checks that every bound macro is used, and that every used macro is bound."""
    used = {
        reference.name
        for binding in reader.bindings
        for reference in references_in(binding.value)
        if isinstance(reference, Macro)
    }
    final = reader.final_bindings()
    values = {binding.macro: binding for binding in final if binding.macro}
    for binding in values.values():
        if binding.macro not in used:
            without_method = "TASK" in values and "TASK" not in used
            remedy = (
                ", as no method is there: add a method file (--gin_file=configs/methods/gkd.gin)"
                if without_method
                else suggestion(binding.macro, used - {"gin.REQUIRED"})
            )
            raise ConfigError(f"{binding.place}: nothing uses the macro {binding.macro}{remedy}")
    missing = {}
    for binding in final:
        for reference in references_in(binding.value):
            if not isinstance(reference, Macro) or reference.name in values:
                continue
            name = binding.key if reference.name == "gin.REQUIRED" else reference.name
            missing.setdefault(name, binding)
    if missing:
        uses = ", ".join(
            f"{name} (used for {binding.key} in {binding.place})"
            if name != binding.key
            else f"{name} (required by {binding.place})"
            for name, binding in missing.items()
        )
        raise ConfigError(f"without a value: {uses}: add --gin.{next(iter(missing))}=…")
    for name in values:
        _check_not_circular(name, values, ())


def _check_not_circular(name: str, values: dict[str, Binding], path: Sequence[str]) -> None:
    if name in path:
        raise ConfigError(
            f"{values[name].place}: the macro {name} is defined by itself "
            f"({' → '.join([*path[path.index(name) :], name])})"
        )
    for reference in references_in(values[name].value) if name in values else ():
        if isinstance(reference, Macro):
            _check_not_circular(reference.name, values, (*path, name))


def _check_required(
    reader: GinReader,
    symbols: dict[int, dict[str, Any]],
    functions: dict[str, Callable[..., Any]],
    verb: Callable[..., Any],
    verb_name: str,
) -> None:
    """Checks that the verb and each `@f()` have values for all required parameters."""
    final = reader.final_bindings()
    bound: dict[Any, set[str]] = {}
    for binding in final:
        if not binding.macro:
            bound.setdefault(functions[binding.target], set()).add(binding.parameter)
    calls = [(verb, verb_name, "")]
    for binding in final:
        for reference in references_in(binding.value):
            if isinstance(reference, Reference) and reference.evaluate:
                function = _resolve(reference.selector, symbols[id(binding.source)], binding)
                calls.append((function, reference.selector, f"{binding.place}: "))
    for function, name, place in calls:
        for parameter in (_parameters(function) or {}).values():
            required = parameter.default is parameter.empty and parameter.kind not in (
                parameter.VAR_POSITIONAL,
                parameter.POSITIONAL_ONLY,
            )
            if required and parameter.name not in bound.get(function, ()):
                raise ConfigError(
                    f"{place}{name} needs a value for {parameter.name}: set {name}.{parameter.name}"
                )
