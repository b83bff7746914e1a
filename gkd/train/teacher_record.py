"""The record of which step of a teacher's run a run learns from: the same after a resume."""

from __future__ import annotations

import pathlib

from gkd.errors import InvalidFile
from gkd.files.atomic_files import write_json
from gkd.files.json_files import Field, check_fields, read_json
from gkd.runs import model_loading

TEACHER_FILE = "teacher.json"


def pinned_teacher(directory: pathlib.Path, teacher: str | None, resumes: bool) -> str | None:
    """The teacher's step folder: on a resume the one the run began with, else the newest."""
    path = directory / TEACHER_FILE
    if resumes and path.exists():
        then = (
            "it records the step of the teacher that this run is trained with: restore it, or "
            "delete it to learn from the teacher's newest step"
        )
        try:
            saved = read_json(path, dict)
            text = Field(kinds=(str,), required=True, none=True)
            check_fields(saved, {"teacher": text, "step_folder": text}, path)
        except InvalidFile as error:
            raise InvalidFile(f"{error}; {then}") from error
        if saved["teacher"] == teacher:
            return saved["step_folder"]
    return teacher


def pin_teacher(
    directory: pathlib.Path, teacher: str | None, loaded: model_loading.LoadedModel | None
) -> None:
    """Records which step of the teacher's run this run learns from."""
    if loaded is not None:
        write_json(directory / TEACHER_FILE, {"teacher": teacher, "step_folder": loaded.checkpoint})
