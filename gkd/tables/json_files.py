"""Reads JSON files: one object per line, or a whole array of objects."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gkd.errors import InvalidFile
from gkd.files.json_files import shown
from gkd.tables import text_files
from gkd.tables.fields import WrittenNumber

Rows = Iterator[tuple[str, Mapping[str, Any]]]
_MARK = "\ufeff"  # a byte-order mark, also between concatenated files
_MOST_DIGITS = 4000  # of a whole number, below Python's limit
_ROWS = "data"  # the member that holds the rows of a file that is one object


def json_rows(path: str, written: bool = False) -> Rows:
    """Reads the objects of a file with one per line, without checking their fields.

    Args:
      path: path of the file, compressed if its name ends so.
      written: keep numbers with a point or an exponent as they are written (`WrittenNumber`).

    Yields:
      (file and line number, object).

    Raises:
      ValueError: a line is malformed, or has a key twice; the text names file and line number.
    """
    parse = _parser(written)
    for number, text in _filled_lines(path):
        where = f"{path}:{number}"
        row = _parsed(parse, text, where, ": every line must hold one whole object")
        yield where, _checked(row, where, ": an array of all rows belongs in a .json file")


def document_rows(path: str) -> Rows:
    """Reads the objects of a .json file: one per line, or one array.

    The array may also be the member `data` of a single object. A file with one object is one row.

    Args:
      path: path of the file, compressed if its name ends so.

    Yields:
      (file and line or row number, object).

    Raises:
      ValueError: the file is malformed, or has a key twice; the text names file and place.
    """
    head = list(itertools.islice(_filled_lines(path), 2))
    if len(head) == 2 and not head[0][1].startswith("[") and _is_json(head[0][1]):
        yield from json_rows(path, written=True)
        return
    if not head:
        return
    text = "".join(text for _, text in text_files.lines(path)).strip(_MARK + " \t\r\n")
    document = _parsed(_parser(True), text, path, ": correct it, or write one object per line")
    if isinstance(document, dict):
        members = document.get(_ROWS)
        nested = isinstance(members, list) and members and isinstance(members[0], dict)
        document = members if nested else [document]
    if not isinstance(document, list):
        raise InvalidFile(f"{path}: {_kind(document)}, needs an array of objects, or one per line")
    for number, row in enumerate(document, start=1):
        where = f"{path}: row {number}"
        yield where, _checked(row, where, "")


def _filled_lines(path: str) -> Iterator[tuple[int, str]]:
    for number, text in text_files.lines(path):
        text = text.removeprefix(_MARK).strip()
        if text:
            yield number, text


@functools.cache
def _parser(written: bool) -> Callable[[str], Any]:
    if not written:
        return json.JSONDecoder(object_pairs_hook=_object).decode
    return json.JSONDecoder(
        object_pairs_hook=_object, parse_float=WrittenNumber, parse_int=_whole
    ).decode


def _whole(text: str) -> int | WrittenNumber:
    """A whole number, kept as it is written where Python would change or refuse it."""
    return WrittenNumber(text) if text == "-0" or len(text) > _MOST_DIGITS else int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the key {shown(repeated)} twice in one object")
    return row


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(parse: Callable[[str], Any], text: str, where: str, remedy: str) -> Any:
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        raise InvalidFile(f"{where}: malformed JSON ({error}){remedy}") from error


def _checked(row: Any, where: str, of_a_list: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        remedy = of_a_list if isinstance(row, list) else ""
        raise InvalidFile(f"{where}: {_kind(row)}, needs an object with fields{remedy}")
    return row


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
