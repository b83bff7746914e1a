"""The record of which step of a teacher's run a run learns from: the same after a resume."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from gkd.checkpoints.hashes import digest_of
from gkd.errors import InvalidFile, InvalidValue
from gkd.files.atomic_files import write_json
from gkd.files.json_files import Field, check_fields, read_json
from gkd.runs import model_loading, setting_changes

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
            digest = Field(kinds=(str,), none=True)
            fields = {"teacher": text, "step_folder": text, "step": number, "digest": digest}
            check_fields(saved, fields, path)
        except InvalidFile as error:
            raise InvalidFile(f"{error}; {then}") from error
        if saved["teacher"] == teacher and saved.get("step") == step:
            _check_same_content(saved, path)
            return saved["step_folder"], None
    return teacher, step


def _check_same_content(saved: Mapping[str, Any], path: pathlib.Path) -> None:
    """Refuses a step that is another one than the run began with, under the same path."""
    known, found = saved.get("digest"), digest_of(saved["step_folder"])
    if None not in (known, found) and known != found:
        raise InvalidValue(
            f"TEACHER {saved['teacher']}: {saved['step_folder']} has been trained again since this "
            f"run began: restore it, choose a new MODEL_DIR, or delete {path} to learn from the "
            "teacher's newest step"
        )


def is_measured(
    saved: Mapping[str, Any], about: Mapping[str, Any], bindings: Mapping[str, str]
) -> bool:
    """Checks that a saved evaluation of a teacher holds for a launch.

    Args:
      saved: the evaluation, with its own "about" and "bindings"; earlier versions recorded no
        digest. Empty where there is none.
      about: the teacher, its digest and dtype, and the fingerprint of the evaluation.
      bindings: the launch's, see `run_directory.current_bindings`.

    >>> is_measured({"about": {"teacher": "t", "digest": "1"}}, {"teacher": "t", "digest": "2"}, {})
    False
    """
    if {"digest": about["digest"], **saved.get("about", {})} != about:
        return False
    return not setting_changes.of_launches(saved.get("bindings", {}), bindings)  # of metrics too


def pin_teacher(
    directory: pathlib.Path,
    teacher: str | None,
    step: int | str | None,
    loaded: model_loading.LoadedModel | None,
) -> None:
    """Records which step of the teacher's run this run learns from."""
    if loaded is not None:
        record = {
            "teacher": teacher,
            "step": step,
            "step_folder": loaded.checkpoint,
            "digest": loaded.digest,
        }
        write_json(directory / TEACHER_FILE, record)
