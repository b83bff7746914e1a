"""Reads JSON from untrusted files within bounds, and checks values field by field.

Every file that may be foreign, truncated or corrupt is read by `read_json` or `parse_json`, and
every external value is checked by `check_fields`. Errors are one line with the name of the file or
setting, the value and the expected values. Only the standard library is imported, so that settings
can be checked before heavy imports.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from gkd.errors import InvalidFile
from gkd.files.lfs_pointers import refuse_lfs_pointer

DEEPEST = 100  # levels of nesting: far above any of our files, far below the stack's limit
LARGEST = 200_000_000  # bytes of a JSON document: a tokenizer.json has tens of megabytes
_SHOWN = 60  # greatest number of characters of a value in an error message
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """The values that one field may have.

    Attributes:
      kinds: accepted Python types. `int` does not accept booleans; `float` accepts integers and
        refuses NaN and infinities.
      least, most: bounds of a number, inclusive; of a string or list, of its length.
      above, below: exclusive bounds of a number.
      choices: the only values allowed, if not empty.
      required: true if the field must be present.
      none: true if null (None) is accepted.
    """

    kinds: tuple[type, ...]
    least: float | int | None = None
    most: float | int | None = None
    above: float | int | None = None
    below: float | int | None = None
    choices: tuple[Any, ...] = ()
    required: bool = False
    none: bool = False


def read_json(path: Any, kind: type | None = None) -> Any:
    """Reads one JSON file.

    Args:
      path: path of the file, with `read_bytes` (pathlib or epath).
      kind: type that the document must have (dict, list), None for any.

    Returns:
      The document.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: empty, truncated, not UTF-8, nested too deeply, too large, of another type, or the
        pointer of a Git LFS file.
      OSError: the file cannot be read, e.g. because it is a folder.
    """
    size = path.stat()
    length = getattr(size, "st_size", None) or getattr(size, "length", 0)
    if length > LARGEST:
        raise InvalidFile(f"{path} has {length} bytes: no JSON file of this program is that large")
    refuse_lfs_pointer(path)
    return parse_json(path.read_bytes(), path, kind)


def parse_json(text: bytes | str, name: Any, kind: type | None = None) -> Any:
    """Parses one JSON document.

    Args:
      text: the document; bytes are UTF-8, with or without a byte-order mark.
      name: name of the document in error messages, e.g. its path.
      kind: type that the document must have, None for any.

    Returns:
      The document.

    Raises:
      ValueError: empty, truncated, not UTF-8, nested too deeply, a repeated key, or another type.

    >>> parse_json(b'{"steps": 10}', "summary.json", dict)
    {'steps': 10}
    >>> parse_json(b'{"steps": 10, "steps": 20}', "summary.json")
    Traceback (most recent call last):
    ...
    gkd.errors.InvalidFile: summary.json has the key 'steps' twice in one object
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{name} is not UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise InvalidFile(f"{name} is empty: JSON was expected")
    _check_depth(text, name)
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, name))
    except json.JSONDecodeError as error:
        raise InvalidFile(f"{name} is not JSON, damaged or truncated: {error}") from error
    if kind is not None and not isinstance(value, kind):
        raise InvalidFile(f"{name} holds {_type_name(value)}, not {_KIND_NAMES[kind]}")
    return value


def _check_depth(text: str, name: Any) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth > DEEPEST:
                raise InvalidFile(f"{name} is nested more than {DEEPEST} levels deep")
        elif token in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]], name: Any) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise InvalidFile(f"{name} has the key {shown(repeated)} twice in one object")
    return value


def check_fields(
    values: Mapping[str, Any], fields: Mapping[str, Field], name: Any, unknown: bool = True
) -> None:
    """Checks the types and bounds of the named values.

    Args:
      values: external values by name.
      fields: allowed values by name.
      name: name of the whole in error messages, e.g. a path.
      unknown: accept names that `fields` does not have.

    Raises:
      ValueError: a value has the wrong type or is out of bounds, or a name is missing or unknown.
    """
    for key, field in fields.items():
        if key in values:
            check_value(values[key], field, f"{name}: {key}")
        elif field.required:
            raise InvalidFile(f"{name} has no {key}")
    if not unknown:
        for key in values:
            if key not in fields:
                raise InvalidFile(f"{name} has the unknown field {shown(key)}")


def check_value(value: Any, field: Field, name: str) -> None:
    """Checks the type and bounds of one value.

    Args:
      value: external value.
      field: allowed values.
      name: name of the value in error messages.

    Raises:
      ValueError: the value has the wrong type, is out of bounds, or is none of the choices.
    """
    if value is None and field.none:
        return
    if not _has_kind(value, field.kinds):
        wanted = " or ".join(_KIND_NAMES.get(kind, kind.__name__) for kind in field.kinds)
        raise InvalidFile(f"{name} is {shown(value)}: {wanted} is needed")
    if field.choices and value not in field.choices:
        choices = ", ".join(repr(choice) for choice in field.choices)
        raise InvalidFile(f"{name} is {shown(value)}: choose one of {choices}")
    is_sized = isinstance(value, str | list | tuple | dict)
    size, noun = (len(value), "a length of ") if is_sized else (value, "")
    if field.least is not None and size < field.least:
        raise InvalidFile(f"{name} is {shown(value)}: use {noun}{field.least} or more")
    if field.most is not None and size > field.most:
        raise InvalidFile(f"{name} is {shown(value)}: use {noun}{field.most} or less")
    if field.above is not None and not size > field.above:
        raise InvalidFile(f"{name} is {shown(value)}: use more than {field.above}")
    if field.below is not None and not size < field.below:
        raise InvalidFile(f"{name} is {shown(value)}: use less than {field.below}")


def _has_kind(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if float in kinds and isinstance(value, int | float):
        return isinstance(value, int) or math.isfinite(value)
    return isinstance(value, kinds)


def shown(value: Any) -> str:
    """Renders a value for an error message, on one line, shortened if it is long.

    >>> shown("x" * 100)[-6:]
    'xxxxx…'
    """
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    tuple: "a tuple",
}


def _type_name(value: Any) -> str:
    return "null" if value is None else _KIND_NAMES.get(type(value), type(value).__name__)
