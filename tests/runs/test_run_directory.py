"""The run directory: what it records, across several launches."""

import json
import re
import sys

import jax
import pytest

from gkd.errors import InvalidValue
from gkd.runs.run_directory import (
    changed_bindings,
    check_model_dir,
    check_nothing_lost,
    open_run,
    read_launches,
    read_or_mend,
    step_spans,
)

RUN = """\
job.run.steps = %STEPS
job.run.config = @job.Config()
job.Config.width = 3
STEPS = 5
"""


@pytest.fixture
def open_after(fake_verb, tmp_path):
    """Configures gin through the command line, opens the same run directory and records."""
    run = fake_verb.write("a.gin", RUN)

    def open_after(*overrides, continues_from=0):
        assert fake_verb(run, *overrides) == (0, "")
        opened = open_run(tmp_path / "run", ["gkd", "fake", *overrides])
        if continues_from is not None:
            names = {"STUDENT": None, "TEACHER": "google/tiny@0123"}
            opened.record(continues_from, names, {"STUDENT": None, "TEACHER": "0123456789abcdef"})
        return opened

    return open_after


def test_a_launch_records_what_is_needed_to_repeat_it(open_after, tmp_path):
    run = open_after("--gin.STEPS=7")
    assert run.path == tmp_path / "run" and run.launches == ()
    (launch,) = read_launches(run.path)
    assert launch["command_line"] == ["gkd", "fake", "--gin.STEPS=7"]
    assert launch["versions"]["jax"] == jax.__version__
    assert {"flax", "optax", "orbax-checkpoint", "seqio", "tensorflow", "gkd"} <= set(
        launch["versions"]
    )
    assert launch["python"] == ".".join(map(str, sys.version_info[:3]))
    assert launch["devices"] == "8 cpu (cpu)"  # tests/conftest.py makes eight
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", launch["started"])
    assert launch["bindings"]["STEPS"] == "7"
    assert launch["continues_from"] == 0
    assert launch["checkpoints"] == {"TEACHER": "google/tiny@0123"}
    assert launch["digests"] == {"TEACHER": "0123456789abcdef"}
    assert "STEPS = 7" in (run.path / "config.gin").read_text().splitlines()


def test_a_launch_that_is_refused_leaves_the_record_as_it_is(open_after):
    run = open_after()
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    assert before.keys() == {
        run.path / name for name in ("config.gin", "operative_config.gin", "launches.jsonl")
    }
    with pytest.raises(ZeroDivisionError), open_after("--gin.STEPS=9", continues_from=None):
        raise ZeroDivisionError
    assert before == {path: path.read_bytes() for path in run.path.iterdir()}


def test_steps_belong_to_the_launch_that_made_them_last():
    """Continued at 16 and at 8 again, where the third launch found step 16 damaged."""
    launches = [{}, {"continues_from": 0}, {"continues_from": 16}, {"continues_from": 8}]
    assert step_spans(launches, 40) == [
        {"first_step": 1, "last_step": 8, "launch": 1},
        {"first_step": 9, "last_step": 40, "launch": 3},
    ]
    assert step_spans([], 40) == [] and step_spans([{"continues_from": 40}], 40) == []


def a_run(folder):
    (folder / "checkpoints/40/state").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "source", ["run", "run/checkpoints", "run/checkpoints/40", "link", "../x/run"]
)
@pytest.mark.parametrize("model_dir", ["run", "link", "run/../run", "run/checkpoints/40/new"])
def test_a_run_does_not_write_where_it_reads(source, model_dir, tmp_path):
    folder = tmp_path / "x"
    a_run(folder / "run")
    (folder / "link").symlink_to("run")
    with pytest.raises(ValueError, match=r"MODEL_DIR .* is the directory of TEACHER .*, which"):
        check_model_dir(folder / model_dir, STUDENT=None, TEACHER=str(folder / source))


def test_a_directory_of_its_own_is_no_overlap(tmp_path):
    a_run(tmp_path / "run")
    for model_dir in ("new", "run2", "run/student", "checkpoints"):
        check_model_dir(tmp_path / model_dir, TEACHER=str(tmp_path / "run"), STUDENT=None)
    check_model_dir(tmp_path / "run", TEACHER=str(tmp_path / "absent"))


@pytest.mark.parametrize("model_dir", ["run/checkpoints", "run/checkpoints/40", "hub"])
def test_a_checkpoint_is_no_run_directory(model_dir, tmp_path):
    a_run(tmp_path / "run")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"MODEL_DIR .* holds "):
        check_model_dir(tmp_path / model_dir)


def test_no_host_name_is_recorded(open_after):
    import getpass
    import socket

    run = open_after()
    launch = json.dumps({**read_launches(run.path)[0], "command_line": []})
    assert socket.gethostname() not in launch
    assert f"/{getpass.getuser()}/" not in launch


def test_nothing_of_the_environment_is_recorded(open_after, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hush-hush")
    run = open_after()
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if "hush" in path.read_text()]


def test_the_operative_configuration_is_written_also_when_the_run_fails(open_after):
    with pytest.raises(ZeroDivisionError), open_after() as run:
        (run.path / "operative_config.gin").unlink()
        raise ZeroDivisionError
    assert "job.run.steps = %STEPS" in (run.path / "operative_config.gin").read_text()


def test_the_operative_configuration_holds_defaults_that_were_used(
    fake_verb, tmp_path, monkeypatch
):
    # Outside gkd: the import hook of the tests hides defaults from gin.
    (tmp_path / "outside_module.py").write_text("def used(beta=0.5): return beta\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = RUN + "import outside_module\njob.run.divergence = @outside_module.used\n"
    run = fake_verb.write("a.gin", text)
    assert fake_verb(run, "--allow_module=outside_module") == (0, "")
    with open_run(tmp_path / "run", []) as run:
        run.record(0)
        (run.path / "operative_config.gin").unlink()
    assert "outside_module.used.beta = 0.5" in (run.path / "operative_config.gin").read_text()
    assert "beta" not in (run.path / "config.gin").read_text()


def test_a_resume_appends_and_says_nothing_when_nothing_changed(open_after, capsys):
    open_after()
    run = open_after()
    assert len(run.launches) == 1
    assert len(read_launches(run.path)) == 2
    assert capsys.readouterr().err == ""


def test_a_changed_configuration_is_one_line_of_warning(open_after, capsys):
    open_after()
    run = open_after("--gin.STEPS=9", "--gin.job.Config.depth=4", continues_from=3)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "warning" in error and "STEPS 5 → 9; job.Config.depth added (4)" in error
    launches = read_launches(run.path)
    assert [launch["bindings"]["STEPS"] for launch in launches] == ["5", "9"]
    assert [launch["continues_from"] for launch in launches] == [0, 3]
    # The comparison is with the launch before, not with the first.
    open_after("--gin.STEPS=9", "--gin.job.Config.depth=4")
    assert capsys.readouterr().err == ""


def test_changed_bindings_in_words():
    before = {"A": "1", "B": "@x.f", "C": "3"}
    after = {"A": "1", "B": "@x.g", "D": "'a'"}
    assert changed_bindings(before, after) == ["B @x.f → @x.g", "C removed (3)", "D added ('a')"]


def test_a_half_written_launch_is_dropped(open_after):
    run = open_after()
    with open(run.path / "launches.jsonl", "ab") as file:
        file.write(b'{"started": "20')
    assert len(read_launches(run.path)) == 1
    open_after()
    assert len(read_launches(run.path)) == 2


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match=r"MODEL_DIR .*run is a file"):
        open_run(tmp_path / "run", [])


def test_a_folder_in_place_of_the_operative_configuration_is_one_clear_line(tmp_path):
    (tmp_path / "operative_config.gin").mkdir()
    with pytest.raises(OSError, match="cannot write .*operative_config.gin .*Is a directory"):
        open_run(tmp_path).write_operative_config()


@pytest.mark.parametrize("content", ['{"steps": 24}', '{"steps": 0}', "{", None])
def test_a_finished_run_without_its_checkpoints_is_not_begun_again(tmp_path, content):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    if content != '{"steps": 24}':  # killed before its first checkpoint, or nothing has trained
        check_nothing_lost(tmp_path)
        return
    with pytest.raises(InvalidValue) as raised:
        check_nothing_lost(tmp_path)
    assert str(raised.value) == (
        f"MODEL_DIR {tmp_path} has the record of a run of 24 steps, but no checkpoint: a new run "
        "would empty its metrics; choose a new MODEL_DIR, or move the directory away"
    )


def test_a_file_that_can_be_made_again_is_left_out_where_it_is_damaged(tmp_path):
    path, warnings = tmp_path / "a.json", []
    assert read_or_mend(path, {"steps": int}, warnings.append) == {} and warnings == []
    path.write_text('{"steps": 3, "more": 1}')
    assert read_or_mend(path, {"steps": int}, warnings.append) == {"steps": 3, "more": 1}
    path.write_text('{"steps": "3"}')
    assert read_or_mend(path, {"steps": int}, warnings.append) == {}
    assert len(warnings) == 1 and warnings[0].startswith("warning: ") and "\n" not in warnings[0]
