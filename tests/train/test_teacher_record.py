"""Which step of a teacher a resumed run learns from."""

import json
import types

from gkd.train.teacher_record import pin_teacher, pinned_teacher

LOADED = types.SimpleNamespace(checkpoint="teacher/checkpoints/2")


def test_a_resumed_run_keeps_its_step_until_another_is_chosen(tmp_path):
    pin_teacher.__wrapped__(tmp_path, "teacher", 2, LOADED)
    found = {step: pinned_teacher(tmp_path, "teacher", step, True) for step in (2, 4, "best")}
    assert found[2] == ("teacher/checkpoints/2", None)  # the folder says which
    assert found[4] == ("teacher", 4) and found["best"] == ("teacher", "best")
    assert pinned_teacher(tmp_path, "other", 2, True) == ("other", 2)
    assert pinned_teacher(tmp_path, "teacher", 2, False) == ("teacher", 2)


def test_a_record_of_an_earlier_version_holds_for_the_newest_step(tmp_path):
    record = {"teacher": "teacher", "step_folder": "teacher/checkpoints/2"}
    (tmp_path / "teacher.json").write_text(json.dumps(record))
    assert pinned_teacher(tmp_path, "teacher", None, True) == ("teacher/checkpoints/2", None)
