"""Opens and checks files of inputs of `infer`."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.tables import fields, text_files
from gkd.tables.delimited import TsvFormat
from gkd.tables.rows import data_files, placed_rows
from gkd.vocabularies import token_rows
from gkd.vocabularies.chat_templates import (
    ChatTemplate,
    chat_template_of,
    check_messages,
    render_chat,
)

INPUT_FIELDS = ("input", "inputs", "text", "prompt")
TARGET_FIELDS = ("target", "targets")
MESSAGES_FIELD = "messages"  # read where a row has no input as text


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of inputs, whose lines have all been checked.

    Attributes:
      path: path of the file.
      input_field, target_field: names of the fields; no target field unless targets are scored.
      count: number of inputs.
      bytes: size of the file.
      sha256: SHA-256 of the file.
      form: format of a CSV or TSV file.
      is_chat: True where the inputs are chats: lists of messages.
      template: chat template of the model, see `for_vocabulary`.
    """

    path: str
    input_field: str
    target_field: str | None
    count: int
    bytes: int
    sha256: str
    form: TsvFormat
    is_chat: bool = False
    template: ChatTemplate | None = None

    def rows(self, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """Iterates over the rows from `start` on."""
        return (row for _, row in itertools.islice(_read_rows(self.path, self.form), start, None))

    def prompt_of(self, row: Mapping[str, Any]) -> str:
        """Returns the text of a row that the model reads."""
        if self.is_chat:
            return render_chat(self.template, row[self.input_field], add_generation_prompt=True)
        return fields.text_of(row, self.input_field, self.path)

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Returns the input of a row."""
        return self.prompt_of(row)

    def target_of(self, row: Mapping[str, Any]) -> str:
        """Returns the target of a row that is scored: the first of several references."""
        return fields.references_of(row, self.target_field, self.path)[0]

    def others_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of a row that are copied to the output: all but an input as text."""
        left_out = None if self.is_chat else self.input_field
        return {name: value for name, value in row.items() if name != left_out}

    def settings(self) -> dict[str, Any]:
        """Returns the facts about the input that the output depends on."""
        return {
            "input_bytes": self.bytes,
            "input_sha256": self.sha256,
            "input_field": self.input_field,
            "target_field": self.target_field,
            "delimiter": self.form.delimiter,
            "quoting": self.form.quoting,
            **self._chat_settings(),
        }

    def _chat_settings(self) -> dict[str, str]:
        """A hash of the template, and today's date where it may write that."""
        if self.template is None:
            return {}
        text = self.template.text or ""
        dated = {"chat_date": datetime.date.today().isoformat()} if "strftime_now" in text else {}
        return {"chat_template": sha256_of(text), **dated}

    def describe(self) -> None:
        """Prints the number and the fields of the inputs."""
        target = f", targets from {self.target_field!r}" if self.target_field else ""
        print(f"{self.path}: {self.count} inputs from field {self.input_field!r}{target}")

    def check_vocabulary(self, vocabulary: Any) -> None:
        """Accepts any vocabulary: a file is not tied to one."""

    def for_vocabulary(self, vocabulary: Any, prefix: str = "") -> Source:
        """Returns the inputs for a model: chats are rendered once, to check all of them.

        Args:
          vocabulary: the model's vocabulary.
          prefix: text before every input.

        Raises:
          MissingFile: the inputs are chats, and the model has no chat template.
          ValueError: the template refuses a chat (the text names its line), or has a prefix; an
            input is empty, which a decoder-only model cannot continue.
        """
        if not self.is_chat:
            check_prompts(self, vocabulary, prefix, _read_rows(self.path, self.form))
            return self
        if prefix:
            raise InvalidValue(f"prefix {prefix!r} belongs to inputs as text, not to messages")
        source = dataclasses.replace(self, template=chat_template_of(vocabulary))
        for where, row in _read_rows(self.path, self.form):
            try:
                source.prompt_of(row)
            except ValueError as error:
                raise InvalidFile(f"{where}: {error}") from error
        return source


def open_source(
    path: str,
    input_field: str | None,
    target_field: str | None,
    score: bool,
    form: TsvFormat | None = None,
) -> Source:
    """Reads a file of inputs once, to check all lines before any work is done.

    Args:
      path: path of a .txt file (one input per line), compressed or not, or of a data file or
        files, see `rows.data_files`.
      input_field, target_field: names of fields; None chooses the usual ones.
      score: true if targets are scored.
      form: format of CSV and TSV files; None is by suffix.

    Returns:
      The file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another kind, has no rows, or a malformed line.
    """
    if target_field is not None and not score:
        raise InvalidValue("target_field is read only with --score: give that too")
    if not (os.path.exists(path) or set("*?") & set(path)):
        raise MissingFile(f"input {path} does not exist")
    files = [path] if _is_text(path) else data_files(path)
    if _is_text(path) and (input_field or score):
        raise InvalidValue(f"input {path} is plain text, without fields: use TSV or JSONL for them")
    count, form, is_chat = 0, form or TsvFormat(), False
    for where, row in _read_rows(path, form):
        if not count:
            names = (*INPUT_FIELDS, MESSAGES_FIELD)
            input_field = input_field or _first_of(names, row, where, "input_field")
            is_chat = input_field == MESSAGES_FIELD or isinstance(row.get(input_field), list)
        if is_chat:
            _check_chat(row.get(input_field), f"{where}: {input_field}")
        else:
            fields.text_of(row, input_field, where)
        if score:
            target_field = target_field or _first_of(TARGET_FIELDS, row, where, "target_field")
            fields.references_of(row, target_field, where)
        count += 1
    if not count:
        raise InvalidFile(f"input {path} has no rows")
    digest, size = hashlib.sha256(), 0
    for name in files:
        with open(name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    return Source(path, input_field, target_field, count, size, digest.hexdigest(), form, is_chat)


def check_prompts(
    source: Any, vocabulary: Any, prefix: str, placed: Iterable[tuple[str, Mapping[str, Any]]]
) -> None:
    """Refuses empty prompts of a model that needs one token to continue.

    Args:
      source: the inputs.
      vocabulary: the model's vocabulary.
      prefix: text before every input.
      placed: the rows with their places.

    Raises:
      InvalidFile: a prompt is empty.
    """
    if token_rows.ends_prompts(vocabulary) or token_rows.begin_ids(vocabulary) or prefix:
        return
    for where, row in placed:
        if not source.prompt_of(row):
            raise InvalidFile(
                f"{where} is empty: a decoder-only model without a BOS needs one token to continue"
            )


def _check_chat(messages: Any, where: str) -> None:
    check_messages(messages, where)
    if messages[-1]["role"] == "assistant":
        raise InvalidFile(
            f"{where}: the last message is the assistant's: leave it out, as the model answers the "
            "message before it"
        )


def sha256_of(text: str) -> str:
    """Returns the SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _first_of(names, row, where, option) -> str:
    for name in names:
        if name in row:
            return name
    raise InvalidFile(
        f"{where}: no field {' or '.join(names)}; the row has {', '.join(row)}: choose one with "
        f"--{option}"
    )


def _is_text(path: str) -> bool:
    return text_files.suffixes(path)[0] == ".txt"


def _read_rows(path: str, form: TsvFormat) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Iterates over the rows of a file of any kind, with their places."""
    if not _is_text(path):
        rows = placed_rows(path, form)
        return ((where, _for_json(row)) for where, row in rows)
    return ((f"{path}:{number}", {"input": text}) for number, text in _text_lines(path))


def _for_json(value: Any) -> Any:
    """A row, or a value inside it, without what JSON lacks: bytes (images, sounds), NaN, infinity.

    Bytes are left out, NaN is null; a number beyond float64, 1e400, becomes the text it is written
    as.
    """
    if isinstance(value, dict):
        return {name: _for_json(v) for name, v in value.items() if not isinstance(v, bytes)}
    if isinstance(value, list | tuple):
        return [_for_json(item) for item in value if not isinstance(item, bytes)]
    if isinstance(value, float) and not math.isfinite(value):
        return value.text if isinstance(value, fields.WrittenNumber) else None
    return value


def _text_lines(path: str) -> Iterator[tuple[int, str]]:
    """Iterates over all lines of a text file (line n is input n) but blank ones at its end."""
    blank: list[tuple[int, str]] = []
    for number, line in text_files.lines(path):
        text = line.rstrip("\r\n")
        if not text.strip():
            blank.append((number, text))
            continue
        yield from blank
        blank = []
        yield number, text
