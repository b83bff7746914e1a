"""The run files that `new` renders configure the runs that they name."""

import gin
import pytest

from gkd.cli import command_line
from gkd.configuration.configured_experiment import experiment_of
from gkd.new.run_files import METRICS, Data, Models, run_files, task_file
from gkd.train.train import train

QUOTES = 'it\'s "a" % \\ päth'


def data(**changes):
    values = {
        "files": {"train": f"{QUOTES}.tsv", "validation": "b.tsv"}, "input_field": QUOTES,
        "target_field": "t", "prefix": "do: ", "delimiter": None, "vocabulary": "v",
        "lengths": (16, 8), "remarks": ("one", "two"), "metric": "rouge2",
    }  # fmt: skip
    return Data(**(values | changes))


def write(folder, models, steps=30, **changes):
    texts = {"task.gin": task_file(data(**changes)), **run_files(str(folder), models, steps)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return list(texts)


@pytest.fixture(autouse=True)
def clean():
    yield
    gin.clear_config()


def configured(path):
    command_line.configure(command_line.parse_arguments(["train", f"--gin_file={path}"]))
    return gin.query_parameter


@pytest.mark.parametrize("metric", METRICS)
def test_texts_survive_quoting_and_every_metric_is_configured(tmp_path, metric):
    write(tmp_path, Models("a/b", "c/d"), metric=metric, delimiter="\t")
    value = configured(tmp_path / "gkd.gin")
    assert value("FILES/gin.macro.value")["train"] == f"{QUOTES}.tsv"
    assert value("INPUT_FIELD/gin.macro.value") == QUOTES
    assert value("DELIMITER/gin.macro.value") == "\t"
    assert value("BEST_METRIC/gin.macro.value") == metric


def test_the_runs_follow_one_another(tmp_path):
    names = write(tmp_path, Models("big/teacher", "small/student"))
    assert names == ["task.gin", "teacher.gin", "start.gin", "supervised_kd.gin", "gkd.gin"]
    found = {}
    for name in names[1:]:
        value = configured(tmp_path / name)
        found[name] = [value(f"{macro}/gin.macro.value") for macro in ("STUDENT", "TEACHER")]
        assert value("MODEL_DIR/gin.macro.value") == f"{tmp_path}/{name.removesuffix('.gin')}"
        assert value("TRAIN_STEPS/gin.macro.value") == 30
    pair = [f"{tmp_path}/start", f"{tmp_path}/teacher"]
    assert found == {
        "teacher.gin": ["big/teacher", None], "start.gin": ["small/student", None],
        "supervised_kd.gin": pair, "gkd.gin": pair,
    }  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 300, 2000])
def test_a_run_has_three_evaluations_at_most(steps):
    lines = run_files("runs", Models("a/b", "c/d"), steps)["gkd.gin"].splitlines()
    intervals = [int(line.split(" = ")[1]) for line in lines if "_EVERY" in line]
    assert len(intervals) == 2
    for every in intervals:
        assert len({*range(every, steps, every), steps}) <= 3


def test_a_tuned_teacher_is_used_as_it_is_and_a_model_file_starts_at_random(tmp_path):
    models = Models("big/teacher", "configs/models/cpu_student.gin", tuned_teacher=True)
    names = write(tmp_path, models, vocabulary="bytes")
    assert "teacher.gin" not in names
    value = configured(tmp_path / "gkd.gin")
    assert value("TEACHER/gin.macro.value") == "big/teacher"
    value = configured(tmp_path / "start.gin")
    assert value("STUDENT/gin.macro.value") is None
    assert value("STUDENT_MODEL/gin.macro.value").selector.endswith("t5.T5Config")


def test_supervised_and_on_policy_distillation_differ_in_lambda(tmp_path, monkeypatch, shared):
    pieces = str(shared / "data" / "t5_vocab" / "spiece.model")
    write(tmp_path, Models("a/b", "c/d"), vocabulary=pieces, input_field="x")
    fractions = {}
    for name in ("supervised_kd", "gkd"):
        configured(tmp_path / f"{name}.gin")
        fractions[name] = experiment_of(train).method.on_policy_fraction
    assert fractions == {"supervised_kd": 0.0, "gkd": 1.0}
