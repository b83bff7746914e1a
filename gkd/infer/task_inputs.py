"""Splits of tasks as inputs of `infer`, with the interface of a file of inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gkd.configuration.task_files import read_task
from gkd.data import mixtures
from gkd.data.tasks import TaskSpec
from gkd.errors import InvalidValue
from gkd.infer.inputs import check_prompts, sha256_of
from gkd.vocabularies import vocabularies
from gkd.vocabularies.chat_templates import chat_template_of


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
    def is_chat(self) -> bool:
        """True where the task's prompts become chats."""
        return self.task.chat is not None

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

    def prompt_of(self, row: Mapping[str, Any]) -> str:
        """Returns the text of a row that the model reads."""
        text = row[self.prompt_field]
        return self.task.chat.render([text])[0] if self.is_chat else text

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Returns the student's prompt of a row."""
        return row["input"]

    def target_of(self, row: Mapping[str, Any]) -> str:
        """Returns the target of a row."""
        return row["target"]

    def others_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields of a row that are copied to the output: all but the input."""
        return {name: text for name, text in row.items() if name != "input"}

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
            **self._chat_settings(),
        }

    def _chat_settings(self) -> dict[str, str]:
        """A hash of the chat's form, wherever its template lies."""
        chat = self.task.chat
        if chat is None:
            return {}
        return {"chat": sha256_of(repr((chat.template.text, chat.system, chat.options)))}

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

    def for_vocabulary(self, vocabulary: Any, prefix: str = "") -> SplitSource:
        """Returns the split; a model of another vocabulary reads chats by its own template.

        Raises:
          MissingFile: the task's prompts are chats, and the model has no chat template.
          InvalidValue: a prompt is empty, which a decoder-only model cannot continue.
        """
        task = self.task
        if task.chat is not None and vocabularies.same_vocabulary(vocabulary, task.vocabulary):
            chat = dataclasses.replace(task.chat, template=chat_template_of(vocabulary))
            task = dataclasses.replace(task, chat=chat)
        source = dataclasses.replace(self, task=task)
        if not self.is_chat:
            rows = enumerate(source.rows(), start=1)
            check_prompts(source, vocabulary, "", ((f"{self.path}: row {n}", r) for n, r in rows))
        return source


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
