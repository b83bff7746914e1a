"""Tasks whose teacher reads another prompt than the student, and tasks of that prompt itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from gkd.data import prompts
from gkd.data.task_spec import TaskSpec, make_task
from gkd.errors import InvalidValue
from gkd.vocabularies.tensorflow_host import tf
from gkd.vocabularies.white_space import rule_of


def with_teacher_inputs(
    task: TaskSpec, preprocessor: Callable[[Mapping[str, Any]], Any], length: int | None = None
) -> TaskSpec:
    """Gives the teacher a prompt of its own on every row of a task.

    Args:
      task: the task; the student's prompts, the targets, the metrics and the splits stay.
      preprocessor: function of the rows' texts, string tensors [rows] under `inputs`, `targets` and
        the names of the source's fields, to the teacher's prompts, a string tensor [rows]. A row
        with an empty teacher prompt has weight 0.
      length: tokens of a teacher prompt, TEACHER_INPUT_LENGTH; longer ones are truncated. None is
        the run's INPUT_LENGTH.

    Returns:
      The task with the additional feature `teacher_inputs`.

    Raises:
      InvalidValue: the task has the feature already, or the length is below 1.
    """
    if "teacher_inputs" in task.features:
        raise InvalidValue(f"task {task.name} has teacher_inputs already: set them once")
    rule = rule_of(task.vocabulary)

    @tf.autograph.experimental.do_not_convert  # its errors would lose their class
    def texts(row: Mapping[str, Any]) -> dict[str, Any]:
        student = task.texts(row)
        teacher = rule.fit_tensor(preprocessor({**row, **student}))
        empty = student["empty"] | prompts.is_empty(teacher)
        return {**student, "teacher_inputs": teacher, "empty": empty}

    made = make_task(
        f"{task.name}_teacher_inputs",
        task.task.source,
        texts,
        task.vocabulary,
        task.task.metric_fns,
        features=(*task.features, "teacher_inputs"),
        chat=task.chat,
    )
    return dataclasses.replace(
        task, name=made.name, task=made.task, texts=texts, teacher_input_length=length
    )


def of_teacher_prompts(
    task: TaskSpec, preprocessor: Callable[[Mapping[str, Any]], Any], name: str | None = None
) -> TaskSpec:
    """Gives the student the teacher's prompt: to fine-tune on it, or to measure what it adds.

    Args:
      task: the task; its targets, metrics and splits stay.
      preprocessor: as in `with_teacher_inputs`; a row with an empty prompt has weight 0.
      name: name in seqio's registry; by default the task's with `_of_teacher_prompts`. In a mixture
        with the task itself the two names must differ.

    Returns:
      The task with other inputs.
    """
    rule = rule_of(task.vocabulary)

    @tf.autograph.experimental.do_not_convert  # its errors would lose their class
    def texts(row: Mapping[str, Any]) -> dict[str, Any]:
        student = task.texts(row)
        inputs = rule.fit_tensor(preprocessor({**row, **student}))
        return {**student, "inputs": inputs, "empty": student["empty"] | prompts.is_empty(inputs)}

    made = make_task(
        name or f"{task.name}_of_teacher_prompts",
        task.task.source,
        texts,
        task.vocabulary,
        task.task.metric_fns,
        features=task.features,
        chat=task.chat,
    )
    return dataclasses.replace(task, name=made.name, task=made.task, texts=texts)


def template(prompt: str) -> Callable[[Mapping[str, Any]], Any]:
    """Makes a preprocessor that fills a template with the texts of each row.

    Args:
      prompt: the teacher's prompt, with `{inputs}`, `{targets}` and names of the source's fields in
        braces.

    Returns:
      A preprocessor for `with_teacher_inputs`.

    Raises:
      InvalidValue: the prompt has a bare brace, an unnamed field or no field.

    >>> row = {"inputs": tf.constant(["2 + 2 = ?"]), "targets": tf.constant(["4"])}
    >>> print(template("{inputs} Solution: {targets}")(row).numpy()[0].decode())
    2 + 2 = ? Solution: 4
    """
    fields = prompts.template_fields([(prompt, "")])

    def fill(row: Mapping[str, Any]) -> Any:
        missing = [field for field in fields if field not in row]
        if missing:
            raise InvalidValue(
                f"the teacher's template names {missing[0]!r}; a row has {', '.join(sorted(row))}"
            )
        return prompts.fill_template(prompt, row)

    return fill
