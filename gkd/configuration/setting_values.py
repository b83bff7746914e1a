"""Describes and checks the values of settings, before heavy imports.

A `Setting` describes one parameter; `verb_settings` and `configurable_settings` hold tables of
them. All errors are one line with the setting, its value and the allowed values.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from gkd.errors import InvalidValue
from gkd.files.json_files import Field, check_value, shown

LARGEST_COUNT = 2**31 - 1  # steps and rows are int32 on the device
LARGEST_SEED = 2**32 - 1  # a key has 32 bits of a seed: larger seeds would repeat smaller ones
LARGEST_NUMBER = 3.4e38  # float32
LONGEST_SEQUENCE = 65536  # tokens: attention over more exceeds the memory of any chip
LARGEST_BATCH = 1_000_000  # rows


@dataclasses.dataclass(frozen=True)
class FunctionValue:
    """A function as a setting's value: `@module.function`, or its result, `@module.function()`.

    Attributes:
      path: dotted name of the function.
      evaluated: true if it is called.
      text: text as the user wrote it.
    """

    path: str
    evaluated: bool
    text: str

    def __repr__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The values that one parameter may have.

    Attributes:
      literal: accepted numbers, strings or booleans; None accepts none.
      words: strings accepted beside them.
      pattern: (regular expression, description) of strings.
      items: accepted elements of a list or tuple; None accepts no list.
      lengths: least and greatest length of a list or tuple, or number of keys of a mapping.
      values: accepted values of a mapping with strings as keys; None accepts no mapping.
      keys: the only keys of a mapping, if not empty.
      functions: dotted names of the functions accepted as `@f`.
      results: dotted names of the functions accepted as `@f()`.
      none: true if None is accepted.
      from_files: false if files may only set it to an empty value.
      anything: true if the configured function itself checks the value.
    """

    literal: Field | None = None
    words: tuple[str, ...] = ()
    pattern: tuple[str, str] | None = None
    items: Setting | None = None
    lengths: tuple[int, int] = (0, 1_000_000)
    values: Setting | None = None
    keys: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    none: bool = False
    from_files: bool = True
    anything: bool = False


def whole(least: int = 0, most: int = LARGEST_COUNT, **others: Any) -> Setting:
    """Describes a whole number between inclusive bounds."""
    return Setting(literal=Field(kinds=(int,), least=least, most=most), **others)


def number(
    least: float | int | None = None,
    most: float | int = LARGEST_NUMBER,
    above: float | int | None = None,
    below: float | int | None = None,
    **others: Any,
) -> Setting:
    """Describes a finite number between bounds; `above` and `below` are exclusive."""
    field = Field(kinds=(float,), least=least, most=most, above=above, below=below)
    return Setting(literal=field, **others)


def text(least: int = 1, **others: Any) -> Setting:
    """Describes a string of at least `least` characters."""
    return Setting(literal=Field(kinds=(str,), least=least), **others)


def choice(*choices: str, **others: Any) -> Setting:
    """Describes one of several strings."""
    return Setting(literal=Field(kinds=(str,), choices=choices), **others)


def flag(**others: Any) -> Setting:
    """Describes True or False."""
    return Setting(literal=Field(kinds=(bool,)), **others)


def sequence(items: Setting, least: int = 0, most: int = 1_000_000, **others: Any) -> Setting:
    """Describes a list or tuple of `least` to `most` items."""
    return Setting(items=items, lengths=(least, most), **others)


def mapping(values: Setting, least: int = 0, **others: Any) -> Setting:
    """Describes a dictionary with strings as keys."""
    return Setting(values=values, lengths=(least, 1_000_000), **others)


def check(value: Any, setting: Setting, name: str, trusted: Collection[str] = ()) -> None:
    """Checks one value.

    Args:
      value: a literal, with `FunctionValue` for functions.
      setting: allowed values.
      name: name of the setting in error messages.
      trusted: modules whose functions are allowed wherever a function is.

    Raises:
      ValueError: the value is not allowed; the text is one line.
    """
    if setting.anything or (value is None and setting.none):
        return
    if isinstance(value, FunctionValue):
        _check_function(value, setting, name, trusted)
    elif isinstance(value, str) and value in setting.words:
        return
    elif isinstance(value, list | tuple) and setting.items is not None:
        _check_length(value, setting, name)
        for number_, item in enumerate(value):
            check(item, setting.items, f"{name}[{number_}]", trusted)
    elif isinstance(value, dict) and setting.values is not None:
        _check_length(value, setting, name)
        for key, item in value.items():
            if not isinstance(key, str) or (setting.keys and key not in setting.keys):
                wanted = ", ".join(map(repr, setting.keys)) or "strings"
                raise InvalidValue(f"{name} has the key {shown(key)}: use {wanted}")
            check(item, setting.values, f"{name}[{key!r}]", trusted)
    else:
        _check_literal(value, setting, name)


def _check_length(value, setting, name):
    least, most = setting.lengths
    if not least <= len(value) <= most:
        wanted = f"{least}" if least == most else f"{least} or more"
        wanted = f"{most} or fewer" if len(value) > most > least else wanted
        raise InvalidValue(f"{name} is {shown(value)}: use {wanted} elements")


def _check_literal(value, setting, name):
    kinds = () if setting.literal is None else setting.literal.kinds
    if isinstance(value, str) and str in kinds:
        check_text(value, name)
        if setting.pattern and not re.fullmatch(setting.pattern[0], value):
            raise InvalidValue(f"{name} is {shown(value)}: use {setting.pattern[1]}")
        if setting.literal.choices and value not in setting.literal.choices:
            choices = ", ".join((*setting.literal.choices, *setting.words))
            raise InvalidValue(f"{name} is {shown(value)}: choose one of {choices}")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if float in kinds and isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue(f"{name} is {shown(value)}: use a finite number")
    # The range is checked only if the type is right.
    if type(value) in kinds or (is_number and float in kinds):
        check_value(value, setting.literal, name)
        return
    for path in (*setting.functions, *setting.results):
        if isinstance(value, str) and value == path.rpartition(".")[2]:
            call = "" if path in setting.functions else "()"
            raise InvalidValue(f"{name} is {shown(value)}: write @{_short(path)}{call}, without ''")
    raise InvalidValue(f"{name} is {shown(value)}: use {expected(setting)}")


def check_text(value: str, name: str) -> None:
    """Checks that a string can be part of a file name or text file.

    Args:
      value: the string.
      name: name of the setting in error messages.

    Raises:
      ValueError: the string holds a NUL character or half of a surrogate pair.
    """
    if "\0" in value:
        raise InvalidValue(f"{name} is {shown(value)}: text cannot hold a NUL character")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidValue(f"{name} is {shown(value)}: it holds half of a character") from None


def _check_function(value, setting, name, trusted):
    accepted = setting.results if value.evaluated else setting.functions
    takes_functions = bool(setting.results or setting.functions)
    if value.path in accepted or (takes_functions and is_within(value.path, trusted)):
        return
    if value.path in (setting.functions if value.evaluated else setting.results):
        bare = value.text.removesuffix("()")
        correct = f"{bare}, without ()" if value.evaluated else f"{bare}()"
        raise InvalidValue(f"{name} is {value.text}: write {correct}")
    raise InvalidValue(f"{name} is {value.text}: use {expected(setting)}")


def is_within(path: str, modules: Collection[str]) -> bool:
    """Returns True if a dotted name is one of the modules, or inside one."""
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def expected(setting: Setting) -> str:
    """Describes the allowed values in words.

    Args:
      setting: allowed values.

    >>> expected(number(none=True))
    'a number or None'
    """
    parts = []
    if setting.literal is not None:
        parts += [repr(choice) for choice in setting.literal.choices] or [
            _KINDS[kind] for kind in setting.literal.kinds
        ]
    parts += [repr(word) for word in setting.words]
    if setting.items is not None:
        least, most = setting.lengths
        count = f"{least} × " if least == most else ""
        parts.append(f"a list of {count}{expected(setting.items)}")
    if setting.values is not None:
        parts.append("a dictionary {'name': …}")
    parts += [f"@{_short(path)}" for path in setting.functions]
    parts += [f"@{_short(path)}()" for path in setting.results]
    parts += ["None"] * setting.none
    if not parts:
        return "nothing: it cannot be set here"
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _short(path: str) -> str:
    return ".".join(path.split(".")[-2:])


_KINDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def check_call(table: Mapping[str, Setting], arguments: Mapping[str, Any]) -> None:
    """Checks the arguments of a call from Python.

    Objects that no literal can represent (functions, models, tasks) are left to the function.

    Args:
      table: allowed values by name of the parameter.
      arguments: arguments by name of the parameter.

    Raises:
      ValueError: a value is not allowed; the text is one line.
    """
    for name, setting in table.items():
        value = arguments.get(name)
        if isinstance(value, int | float | str | list | tuple | dict) and not _holds_objects(value):
            check(value, setting, name)


def _holds_objects(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_objects(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_objects(item) for item in value)
    return not (value is None or isinstance(value, int | float | str))
