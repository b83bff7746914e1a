"""Finds the fields of a row, nested ones by dots, and reads them as texts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from gkd.errors import InvalidFile
from gkd.files.json_files import shown
from gkd.tables.columns import delimiter_hint

_MOST_NAMES, _LONGEST_NAME = 20, 60  # in a message
_KINDS = {dict: "an object", list: "a list", type(None): "null", bytes: "bytes"}
_MISSING = object()


class WrittenNumber(float):
    """A number of a JSON file, which remembers how it is written there: 1.50, 1e5."""

    def __new__(cls, text: str) -> WrittenNumber:
        """Parses the number."""
        number = super().__new__(cls, text)
        number.text = text
        return number


def text_of(row: Mapping[str, Any], field: str, where: str) -> str:
    """Reads a field as a text.

    Args:
      row: the row.
      field: name of the field; `translation.en` is the field en inside the field translation, if
        no field has the whole name.
      where: file and place of the row, for messages.

    Returns:
      The text. A number is the text that it is written as, a truth value `true` or `false`.

    Raises:
      ValueError: there is no such field, or it is neither; the text suggests a likely name.
    """
    return _text(value_of(row, field, where), f"{where}: field {field!r}")


def texts_of(row: Mapping[str, Any], field: str, where: str) -> list[str]:
    """Reads a field that holds a list of texts, by the rules of `text_of`.

    Args:
      row, field, where: as in `text_of`.

    Returns:
      The texts.

    Raises:
      ValueError: there is no such field, or it is no list of texts.
    """
    value, name = value_of(row, field, where), f"{where}: field {field!r}"
    if not isinstance(value, list):
        raise InvalidFile(f"{name} is {_kind(value)}, needs a list of texts")
    return [_text(item, f"{name}, item {i}") for i, item in enumerate(value, start=1)]


def references_of(row: Mapping[str, Any], field: str, where: str) -> list[str]:
    """Reads a field that holds a text or a list of texts: one reference or several.

    Args:
      row, field, where: as in `text_of`.

    Returns:
      The references, one or more.

    Raises:
      ValueError: there is no such field, or it is neither, or the list is empty.
    """
    if not isinstance(value_of(row, field, where), list):
        return [text_of(row, field, where)]
    references = texts_of(row, field, where)
    if not references:
        raise InvalidFile(f"{where}: field {field!r} is an empty list, needs at least one text")
    return references


def value_of(row: Mapping[str, Any], field: str, where: str) -> Any:
    """Finds the value of a field, see `text_of`.

    Args:
      row, field, where: as in `text_of`.

    Raises:
      ValueError: there is no such field.

    >>> value_of({"translation": {"en": "Hello"}}, "translation.en", "a.jsonl:1")
    'Hello'
    """
    value = _found(row, field)
    if value is _MISSING:
        reason = _empty_parent(row, field) or _suggestion(row, field)
        raise InvalidFile(f"{where}: no field {field!r}{reason}")
    return value


def _found(value: Any, field: str) -> Any:
    if isinstance(value, list):  # of objects, e.g. answers: the field of each
        values = [_found(item, field) for item in value]
        return _MISSING if not values or any(item is _MISSING for item in values) else values
    if not isinstance(value, Mapping):
        return _MISSING
    if field in value:
        return value[field]
    parts = field.split(".")
    for i in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:i])
        found = _found(value[name], ".".join(parts[i:])) if name in value else _MISSING
        if found is not _MISSING:
            return found
    return _MISSING


def _empty_parent(row: Mapping[str, Any], field: str) -> str:
    """The end of a message if a field around this one is null, or a list without it."""
    parts = field.split(".")
    for i in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:i])
        value, inner = _found(row, name), ".".join(parts[i:])
        if value is None or value == []:
            kind = "null" if value is None else "an empty list"
            return f": {name!r} is {kind}: correct or drop the row"
        if isinstance(value, list):
            lacks = [_found(item, inner) is _MISSING for item in value]
            if not all(lacks):
                return (
                    f": item {lacks.index(True) + 1} of {name!r} has none: correct or drop the row"
                )
    return ""


def _suggestion(row: Mapping[str, Any], field: str) -> str:
    """The end of a message: the likely name, and the row's names."""
    names = [_printable(str(name)) for name in row]
    listed = ", ".join([*names[:_MOST_NAMES], *(["…"] if names[_MOST_NAMES:] else [])])
    has = f"; the row has {listed or 'no fields'}{delimiter_hint(names)}"
    likely = _likely(field, list(dict.fromkeys(paths(row))))
    return (f": did you mean {likely!r}?" if likely else "") + has


def _printable(name: str) -> str:
    """A name as it is written in messages: on one line, not too long."""
    return name if name.isprintable() and len(name) <= _LONGEST_NAME else shown(name)


def _likely(field: str, paths: list[str]) -> str | None:
    """The name that was probably meant: of another case, nested, or spelt alike."""

    def plain(name: str) -> str:
        return name.strip().casefold().replace("-", "_").replace(" ", "_")

    alike = {plain(path): path for path in reversed(paths)}
    ends = [path for path in paths if plain(path).endswith("." + plain(field))]
    near = difflib.get_close_matches(plain(field), alike, n=1, cutoff=0.6)
    return alike.get(plain(field)) or next(iter(ends), None) or (alike[near[0]] if near else None)


def paths(value: Any, before: str = "", depth: int = 4) -> Iterator[str]:
    """Yields the dotted names of a row's fields, also of nested ones.

    Args:
      value: a row, or a value in it.
      before: text before every name.
      depth: greatest number of levels.

    >>> list(paths({"id": 1, "translation": {"en": "Hello"}}))
    ['id', 'translation', 'translation.en']
    """
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, Mapping) and depth:
        for name, inner in value.items():
            yield f"{before}{name}"
            yield from paths(inner, f"{before}{name}.", depth - 1)


def _text(value: Any, name: str) -> str:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{name} is bytes that are not UTF-8, needs text") from error
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, WrittenNumber):
        return value.text
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidFile(f"{name} is {value}, needs text or a number: correct or drop the row")
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        remedy = ": correct or drop the row" if value is None else ""
        raise InvalidFile(f"{name} is {_kind(value)}, needs text{remedy}")
    check_encodes(value, name)
    return value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def check_encodes(text: str, name: str) -> None:
    """Checks that a text can be encoded: a truncated JSON escape leaves half a surrogate pair.

    Args:
      text: the text.
      name: name of the text in the message, e.g. its file, line and field.

    Raises:
      ValueError: the text holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InvalidFile(
            f"{name} is no valid text: character {error.start} is {half!r}, half of a surrogate "
            "pair: correct or drop the row"
        ) from error
