"""The record of which step of a teacher's run a run learns from: the same after a resume."""

from __future__ import annotations

import pathlib

from gkd.errors import InvalidFile
from gkd.files.atomic_files import write_json
from gkd.files.json_files import Field, check_fields, read_json
from gkd.runs import model_loading

TEACHER_FILE = "teacher.json"


def pinned_teacher(
    directory: pathlib.Path, teacher: str | None, step: int | str | None, resumes: bool
) -> tuple[str | None, int | str | None]:
    """The teacher's checkpoint and step: on a resume the step folder that the run began with."""
    path = directory / TEACHER_FILE
    if resumes and path.exists():
        then = (
            "it records the step of the teacher that this run is trained with: restore it, or "
            "delete it to learn from the teacher's newest step"
        )
        try:
            saved = read_json(path, dict)
            text = Field(kinds=(str,), required=True, none=True)
            number = Field(kinds=(int, str), none=True)
            check_fields(saved, {"teacher": text, "step_folder": text, "step": number}, path)
        except InvalidFile as error:
            raise InvalidFile(f"{error}; {then}") from error
        if saved["teacher"] == teacher and saved.get("step") == step:
            return saved["step_folder"], None
    return teacher, step


def pin_teacher(
    directory: pathlib.Path,
    teacher: str | None,
    step: int | str | None,
    loaded: model_loading.LoadedModel | None,
) -> None:
    """Records which step of the teacher's run this run learns from."""
    if loaded is not None:
        record = {"teacher": teacher, "step": step, "step_folder": loaded.checkpoint}
        write_json(directory / TEACHER_FILE, record)
