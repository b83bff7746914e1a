"""Replaces the training rows of a task by a teacher's completions: the data set of SeqKD."""

from __future__ import annotations

import dataclasses

from gkd.data import mixtures, prompts, sources
from gkd.data.task_spec import TaskSpec, check_max_examples, make_task
from gkd.errors import InvalidValue
from gkd.vocabularies.white_space import rule_of


def with_teacher_outputs(
    task: TaskSpec,
    file: str | None,
    directory: str | None = None,
    input_field: str = "input",
    output_field: str = "text",
    prefix: str = "",
    max_examples: int | None = None,
) -> TaskSpec:
    """Returns a task with the prompts and completions of a file in place of its training rows.

    Args:
      task: the task, whose vocabulary, metrics and other splits stay.
      file: path of a data file with one prompt and completion per row, e.g. the output
        of `infer`.
      directory: folder of a relative path; by default the environment variable GKD_DATA.
      input_field: name of the field of the prompt.
      output_field: name of the field of the completion.
      prefix: text before every prompt, the same as --prefix of `infer`.
      max_examples: number of rows to use; None uses all.

    Raises:
      ValueError: no file is named.

    Source: Kim & Rush, "Sequence-Level Knowledge Distillation" (2016), section 3.2.
    """
    if file is None:
        raise InvalidValue(
            "SeqKD needs the teacher's outputs: set TEACHER_OUTPUTS to the JSONL file that "
            "`python -m gkd infer` wrote for the training prompts"
        )
    check_max_examples(max_examples)
    source = sources.files_source(
        {"train": file}, (input_field, output_field), directory, None, max_examples
    )
    rule = rule_of(task.vocabulary)
    texts = prompts.text_to_text(input_field, output_field, prefix, rule)

    def read(split: str) -> list[mixtures.Texts]:
        if split == "train":
            return [mixtures.read_texts(source, texts, split)]
        columns = mixtures.read_texts(task.task.source, task.texts, split)
        columns.pop("teacher_inputs", None)  # the training rows have none
        return [columns]

    made = make_task(
        f"{task.name}_teacher_outputs",
        mixtures.mixed_source(read, sorted({"train", *task.splits}), lambda split, sizes: sizes),
        lambda row: row,
        task.vocabulary,
        task.task.metric_fns,
        chat=task.chat,
    )
    return dataclasses.replace(
        task, name=made.name, task=made.task, texts=made.texts, max_examples=max_examples
    )
