"""Checks modules, functions and values of gin files before any of them is imported.

Gin imports what a file names and calls what it refers to: a file could run any program. So a file
may import and name only what the tables of settings hold, and modules that the user allows with
`--allow_module=NAME`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gkd.configuration import setting_values
from gkd.configuration.gin_files import (
    REPOSITORY,
    Binding,
    ConfigError,
    GinReader,
    Macro,
    Reference,
    Source,
    references_in,
)
from gkd.configuration.verb_settings import SETTINGS
from gkd.errors import UserError

DYNAMIC_REGISTRATION = "__gin__.dynamic_registration"
_SINGLETON = "gin.singleton"
_CONSTRUCTOR = f"{_SINGLETON}.constructor"
_MODULES = {path.rpartition(".")[0] for path in SETTINGS}
_PACKAGES = {module.rpartition(".")[0] for module in _MODULES} | {"gkd"}


class _Unknown(Exception):
    """Raised for a value that other checks refuse: an unbound or circular macro."""


def check(reader: GinReader, trusted: Sequence[str] = ()) -> None:
    """Checks all bindings without importing any module.

    Args:
      reader: all files and overrides, read.
      trusted: modules that files may use, with all of their content, besides the tables.

    Raises:
      ConfigError: a module or function is not allowed, or a value has the wrong type or is out of
        range; the text is one line with its place.
    """
    for source in _sources(reader):
        _check_imports(source, trusted)
    for binding in reader.bindings:
        _check_functions(binding, trusted)
    for binding in reader.final_bindings():
        for text in references_in(binding.value, str):
            _refuse(binding, setting_values.check_text, text, binding.key)
    macros = {b.macro: b for b in reader.final_bindings() if b.macro}
    for binding in reader.final_bindings():
        if not binding.macro:
            _check_value(binding, macros, trusted)


def path_of(selector: str, source: Source) -> str | None:
    """Resolves a selector to a dotted name by its source's imports; None if unknown.

    Args:
      selector: name in a gin file, e.g. `divergences.forward_kl`.
      source: the source of the name, with its imports.
    """
    if selector == _SINGLETON or selector.startswith("gin."):
        return selector
    head, dot, rest = selector.partition(".")
    for statement in reversed(source.imports):
        if statement.module != DYNAMIC_REGISTRATION and statement.bound_name() == head:
            whole = statement.is_from or statement.alias
            return (statement.module if whole else head) + dot + rest
    return None


def _sources(reader: GinReader) -> Iterator[Source]:
    yield from reader.sources
    yield from (binding.source for binding in reader.bindings if not binding.source.path)


def _check_imports(source: Source, trusted: Sequence[str]) -> None:
    for statement in source.imports:
        module = statement.module
        if module == DYNAMIC_REGISTRATION or module in _MODULES | _PACKAGES:
            continue
        if setting_values.is_within(module, trusted) or _is_missing_here(module):
            continue
        raise ConfigError(
            f"{source.place(statement.location.line_num)}: import of {module}: gin files may use "
            "gkd's own functions only, as a module runs code when it is imported; if you trust it, "
            f"add --allow_module={module}"
        )


def _is_missing_here(module: str) -> bool:
    """True if a module of gkd does not exist, so that its import fails with a suggestion."""
    if not module.startswith("gkd."):
        return False
    path = REPOSITORY.joinpath(*module.split("."))
    return not path.is_dir() and not path.with_suffix(".py").exists()


def _check_functions(binding: Binding, trusted: Sequence[str]) -> None:
    """Refuses whatever the binding sets or refers to that is not in the tables."""
    selectors = [] if binding.macro else [("", binding.selector)]
    for reference in references_in(binding.value, Reference):
        selectors.append(("@", reference.selector))
    for sign, selector in selectors:
        path = path_of(selector, binding.source)
        if path is None or path in SETTINGS or setting_values.is_within(path, trusted):
            continue
        if path == _SINGLETON:
            continue
        module, _, name = path.rpartition(".")
        if path.startswith("gin.") or module not in _MODULES:
            raise ConfigError(
                f"{binding.place}: {sign}{selector}: gin files may use gkd's own functions only "
                "(of tasks, divergences, optimizers, …); if you trust another module, add "
                "--allow_module=MODULE"
            )
        known = {p.rpartition(".")[2] for p in SETTINGS if p.startswith(f"{module}.")}
        owner = selector.rpartition(".")[0]
        raise ConfigError(
            f"{binding.place}: {sign}{selector}: {owner} has no {name} that gin files may use"
            f"{_close(name, known)}"
        )


def _close(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {found[0]}?" if found else f" (it has {', '.join(sorted(known))})"


def _check_value(binding: Binding, macros: dict[str, Binding], trusted: Sequence[str]) -> None:
    path = path_of(binding.selector, binding.source)
    setting = SETTINGS.get(path or "", {}).get(binding.parameter)
    if setting is None:
        return
    try:
        value, origin = _resolved(binding, macros)
    except _Unknown:
        return
    _refuse(origin, setting_values.check, value, setting, origin.key, trusted)
    if value and origin.source.path and not setting.from_files:
        raise ConfigError(
            f"{origin.place}: {origin.key} chooses programs to run, so no file may set it: give "
            f"it on the command line, --gin.{origin.key}=…"
        )


def _refuse(binding: Binding, function: Any, *arguments: Any) -> None:
    """Calls a check, and adds the place of the value to its error."""
    try:
        function(*arguments)
    except UserError as error:
        place = f"{binding.place}: " if binding.source.path else ""
        raise ConfigError(f"{place}{error}") from None


def _resolved(binding: Binding, macros: dict[str, Binding]) -> tuple[Any, Binding]:
    """The final value of a parameter, and the binding that holds it."""
    seen = [binding.key]
    while isinstance(binding.value, Macro):
        name = binding.value.name
        if name in seen or name not in macros:
            raise _Unknown
        seen.append(name)
        binding = macros[name]
    return _literal(binding.value, binding, macros, tuple(seen)), binding


def _literal(value: Any, binding: Binding, macros: dict[str, Binding], seen: tuple) -> Any:
    """Replaces macros inside a value by their values, and references by functions."""
    if isinstance(value, Macro):
        if value.name in seen or value.name not in macros:
            raise _Unknown
        other = macros[value.name]
        return _literal(other.value, other, macros, (*seen, value.name))
    if isinstance(value, Reference):
        return _function(value, binding, macros, seen)
    if isinstance(value, dict):
        return {
            _literal(key, binding, macros, seen): _literal(item, binding, macros, seen)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_literal(item, binding, macros, seen) for item in value)
    return value


def _function(
    reference: Reference, binding: Binding, macros: dict[str, Binding], seen: tuple
) -> setting_values.FunctionValue:
    path = path_of(reference.selector, binding.source)
    if path is None:  # not imported, which the next check reports
        raise _Unknown
    if path == _SINGLETON:  # the result of its constructor
        constructor = macros.get(f"{reference.scope}/{_CONSTRUCTOR}")
        if constructor is None or not isinstance(constructor.value, Reference):
            raise _Unknown
        made = _literal(constructor.value, constructor, macros, seen)
        return setting_values.FunctionValue(made.path, True, repr(reference))
    return setting_values.FunctionValue(path, reference.evaluate, repr(reference))
