"""Opens and checks the inputs of `infer`: files, and splits of tasks."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gkd.configuration.task_files import read_task
from gkd.data import mixtures, sources
from gkd.data.tasks import TaskSpec
from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.vocabularies import vocabularies

INPUT_FIELDS = ("input", "inputs", "text", "prompt")
TARGET_FIELDS = ("target", "targets")


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of inputs, whose lines have all been checked.

    Attributes:
      path: path of the file.
      input_field, target_field: names of the fields; no target field unless targets are scored.
      count: number of inputs.
      sha256: SHA-256 of the file.
    """

    path: str
    input_field: str
    target_field: str | None
    count: int
    sha256: str

    def rows(self, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """Iterates over the rows from `start` on."""
        return (row for _, row in itertools.islice(_read_rows(self.path), start, None))

    def settings(self) -> dict[str, Any]:
        """Returns the facts about the input that the output depends on."""
        return {
            "input_bytes": os.path.getsize(self.path),
            "input_sha256": self.sha256,
            "input_field": self.input_field,
            "target_field": self.target_field,
        }

    def describe(self) -> None:
        """Prints the number and the fields of the inputs."""
        target = f", targets from {self.target_field!r}" if self.target_field else ""
        print(f"{self.path}: {self.count} inputs from field {self.input_field!r}{target}")

    @property
    def prompt_field(self) -> str:
        """The field that the model reads."""
        return self.input_field

    def check_vocabulary(self, vocabulary: Any) -> None:
        """Accepts any vocabulary: a file is not tied to one."""


@dataclasses.dataclass(frozen=True)
class SplitSource:
    """A split of a task, whose row n is input n, with the interface of `Source`.

    Attributes:
      path: path of the task's gin file.
      task: the task.
      split: name of the split.
      inputs, targets: texts in UTF-8; inputs include the task's own prefix.
      teacher_inputs: the teacher's prompts, which the model reads instead; None where it reads the
        inputs.
      input_field, target_field: names of the fields; no target field unless targets are scored.
    """

    path: str
    task: TaskSpec
    split: str
    inputs: Sequence[bytes]
    targets: Sequence[bytes]
    input_field: str
    target_field: str | None
    teacher_inputs: Sequence[bytes] | None = None

    @property
    def count(self) -> int:
        """Number of inputs."""
        return len(self.inputs)

    @property
    def prompt_field(self) -> str:
        """The field that the model reads."""
        return self.input_field if self.teacher_inputs is None else "teacher_input"

    def rows(self, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """Iterates over the rows from `start` on."""
        columns = {"input": self.inputs, "target": self.targets}
        if self.teacher_inputs is not None:
            columns["teacher_input"] = self.teacher_inputs
        for texts in zip(*(column[start:] for column in columns.values()), strict=True):
            yield {name: text.decode() for name, text in zip(columns, texts, strict=True)}

    def settings(self) -> dict[str, Any]:
        """Returns the facts about the input that the output depends on."""
        digest, size = hashlib.sha256(), 0
        for row in self.rows():
            line = json.dumps(row).encode() + b"\n"
            digest.update(line)
            size += len(line)
        return {
            "task": self.task.name,
            "split": self.split,
            "input_bytes": size,
            "input_sha256": digest.hexdigest(),
            "input_field": self.input_field,
            "target_field": self.target_field,
        }

    def describe(self) -> None:
        """Prints the number, task and split of the inputs."""
        scored = ", with targets" if self.target_field else ""
        scored += "" if self.teacher_inputs is None else "; the model reads the teacher's prompts"
        print(
            f"{self.path}: {self.count} inputs of task {self.task.name}, split {self.split}{scored}"
        )

    def check_vocabulary(self, vocabulary: Any) -> None:
        """Checks that the task has the vocabulary of the model.

        Args:
          vocabulary: the model's vocabulary.

        Raises:
          ValueError: they differ.
        """
        difference = vocabularies.same_vocabulary(vocabulary, self.task.vocabulary)
        if difference:
            raise InvalidValue(
                f"{self.path}: the model's ids are not those of task {self.task.name} "
                f"({difference}): its top-k cannot teach that task"
            )


def open_split(
    path: str,
    overrides: Sequence[str],
    split: str,
    score: bool,
    allowed: Sequence[str] = (),
    teacher: bool = False,
) -> SplitSource:
    """Reads the texts of a task's split, in order.

    Args:
      path: path of the gin file that defines the task.
      overrides: overrides NAME=VALUE of its macros.
      split: name of one of the task's splits.
      score: true if targets are scored.
      allowed: modules that the gin file may import besides gkd's own.
      teacher: the model is a teacher, and reads the task's `teacher_inputs` where there are any.

    Returns:
      The split.

    Raises:
      ValueError: the configuration is wrong, or the task has no such split.
    """
    task = read_task(path, overrides, allowed)
    if split not in task.splits:
        raise InvalidValue(f"{path}: no split {split!r}; the task has {', '.join(task.splits)}")
    texts = mixtures.read_texts(task.task.source, task.texts, split)
    columns = {name: column.tolist() for name, column in texts.items()}
    return SplitSource(
        path=path,
        task=task,
        split=split,
        inputs=columns["inputs"],
        targets=columns["targets"],
        input_field="input",
        target_field="target" if score else None,
        teacher_inputs=columns.get("teacher_inputs") if teacher else None,
    )


def open_source(
    path: str, input_field: str | None, target_field: str | None, score: bool
) -> Source:
    """Reads a file of inputs once, to check all lines before any work is done.

    Args:
      path: path of a .txt, .tsv, .jsonl or .json file (one object per line), optionally with .gz.
      input_field, target_field: names of fields; None chooses the usual ones.
      score: true if targets are scored.

    Returns:
      The file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another kind, has no rows, or a malformed line.
    """
    if target_field is not None and not score:
        raise InvalidValue("target_field is read only with --score: give that too")
    if path.removesuffix(".gz").endswith(".txt") and (input_field or score):
        raise InvalidValue(f"input {path} is plain text, without fields: use TSV or JSONL for them")
    count = 0
    for number, row in _read_rows(path):
        where = f"{path}:{number}"
        input_field = input_field or _first_of(INPUT_FIELDS, row, where, "input_field")
        if score:
            target_field = target_field or _first_of(TARGET_FIELDS, row, where, "target_field")
        for field in filter(None, (input_field, target_field)):
            _check_text(row, field, where)
        count += 1
    if not count:
        raise InvalidFile(f"input {path} has no rows")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Source(path, input_field, target_field, count, digest)


def _first_of(names, row, where, option) -> str:
    for name in names:
        if name in row:
            return name
    raise InvalidFile(
        f"{where}: no field {' or '.join(names)}; the row has {', '.join(row)}: choose one with "
        f"--{option}"
    )


def _check_text(row: Mapping[str, Any], field: str, where: str) -> None:
    if field not in row:
        raise InvalidFile(f"{where}: no field {field!r}; the row has {', '.join(row)}")
    if not isinstance(row[field], str):
        raise InvalidFile(f"{where}: field {field!r} is {type(row[field]).__name__}, needs text")
    sources.check_encodes(row[field], f"{where}: field {field!r}")


def _read_rows(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Iterates over the numbered rows of a file of any kind."""
    if not os.path.isfile(path):
        raise MissingFile(f"input {path} does not exist, or is no file")
    if path.removesuffix(".gz").endswith(".txt"):
        yield from ((number, {"input": text}) for number, text in _text_lines(path))
        return
    rows = sources.numbered_rows(path)
    if rows is None:
        raise InvalidValue(f"input {path} is neither .txt, .tsv nor .jsonl (nor one of them .gz)")
    yield from rows


def _text_lines(path: str) -> Iterator[tuple[int, str]]:
    """Iterates over all lines of a text file (line n is input n) but blank ones at its end."""
    blank: list[tuple[int, str]] = []
    for number, text in sources.lines(path):
        if not text.strip():
            blank.append((number, text))
            continue
        yield from blank
        blank = []
        yield number, text
