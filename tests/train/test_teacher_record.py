"""Which step of a teacher a resumed run learns from."""

import hashlib
import json
import shutil
import types

import pytest

from gkd.errors import InvalidValue
from gkd.train.teacher_record import is_measured, pin_teacher, pinned_teacher
from tests.train import training

LOADED = types.SimpleNamespace(checkpoint="teacher/checkpoints/2", digest=None)


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


def test_a_teacher_that_was_trained_again_is_refused_until_it_is_chosen_anew(tmp_path):
    folder = tmp_path / "teacher" / "checkpoints" / "2"
    folder.mkdir(parents=True)
    (folder / "hashes.json").write_text("first")
    digest = hashlib.sha256(b"first").hexdigest()[:16]
    loaded = types.SimpleNamespace(checkpoint=str(folder), digest=digest)
    pin_teacher.__wrapped__(tmp_path, "teacher", None, loaded)
    assert pinned_teacher(tmp_path, "teacher", None, True) == (str(folder), None)
    (folder / "hashes.json").write_text("again")
    with pytest.raises(InvalidValue) as raised:
        pinned_teacher(tmp_path, "teacher", None, True)
    record = tmp_path / "teacher.json"
    assert str(raised.value) == (
        f"TEACHER teacher: {folder} has been trained again since this run began: restore it, "
        f"choose a new MODEL_DIR, or delete {record} to learn from the teacher's newest step"
    )
    # Another step is a choice of its own; so is a record of an earlier version, and no record.
    assert pinned_teacher(tmp_path, "teacher", 4, True) == ("teacher", 4)
    saved = json.loads(record.read_text())
    del saved["digest"]
    record.write_text(json.dumps(saved))
    assert pinned_teacher(tmp_path, "teacher", None, True) == (str(folder), None)
    record.unlink()
    assert pinned_teacher(tmp_path, "teacher", None, True) == ("teacher", None)


def test_a_teacher_that_was_trained_again_is_measured_again():
    about = {"teacher": "t/checkpoints/2", "digest": "b" * 16, "dtype": "float32"}
    bindings = {"TASK": "1"}
    saved = {"about": about, "bindings": bindings}
    assert is_measured(saved, about, bindings)
    assert not is_measured({**saved, "about": {**about, "digest": "a" * 16}}, about, bindings)
    assert not is_measured({}, about, bindings)
    earlier = {key: value for key, value in about.items() if key != "digest"}
    assert is_measured({**saved, "about": earlier}, about, bindings)


@pytest.mark.usefixtures("one_device")
def test_a_resumed_run_notices_that_its_teacher_was_trained_again(folder, teacher, capfd):
    run, step = folder / "student", teacher / "checkpoints" / "4"
    settings = (*training.DISTIL, f'TEACHER="{teacher}"', "EVALUATION_EXAMPLES=8")

    def resume(*more):
        return training.train(run, *settings, "EVALUATE_EVERY=0", *more)

    def sha256():
        return hashlib.sha256((step / "hashes.json").read_bytes()).hexdigest()[:16]

    digests = [sha256()]
    assert resume("TRAIN_STEPS=2") == 0
    shutil.rmtree(teacher)
    with training.no_evaluations():
        assert training.train(teacher, "TRAIN_STEPS=4", "SEED=1") == 0
    digests.append(sha256())
    line = training.fails(capfd, run, *settings, "EVALUATE_EVERY=0", "TRAIN_STEPS=3")
    assert f"{step} has been trained again since this run began: restore it" in line
    (run / "teacher.json").unlink()
    assert resume("TRAIN_STEPS=3") == 0
    assert "evaluating the teacher on 8 rows" in capfd.readouterr().err
    rows = [json.loads(row) for row in (run / "launches.jsonl").read_text().splitlines()]
    assert [row["digests"]["TEACHER"] for row in rows] == digests
    measured = json.loads((run / "teacher_evaluation.json").read_text())
    assert measured["about"]["digest"] == digests[1]
    assert resume("TRAIN_STEPS=4") == 0
    assert "evaluating the teacher" not in capfd.readouterr().err
