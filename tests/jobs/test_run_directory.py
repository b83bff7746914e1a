"""The run directory: what it records, across several launches."""

import json
import re
import subprocess
import sys

import jax
import pytest

from gkd.jobs import run_directory
from gkd.jobs.run_directory import changed_bindings, git_state, open_run, read_launches

RUN = """\
job.run.steps = %STEPS
job.run.config = @job.Config()
job.Config.width = 3
STEPS = 5
"""


@pytest.fixture
def open_after(fake_verb, tmp_path):
    """Configures gin through the command line, then opens the same run directory."""
    run = fake_verb.write("a.gin", RUN)

    def open_after(*overrides):
        assert fake_verb(run, *overrides) == (0, "")
        return open_run(tmp_path / "run", ["gkd", "fake", *overrides])

    return open_after


def test_a_launch_records_what_is_needed_to_repeat_it(open_after, tmp_path):
    run = open_after("--gin.STEPS=7")
    assert run.path == tmp_path / "run" and not run.resumed and run.changes == ()
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
    assert "STEPS = 7" in (run.path / "config.gin").read_text().splitlines()


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
        raise ZeroDivisionError
    assert "job.run.steps = %STEPS" in (run.path / "operative_config.gin").read_text()


def test_the_operative_configuration_holds_defaults_that_were_used(
    fake_verb, tmp_path, monkeypatch
):
    # Outside gkd: the import hook of the tests hides defaults from gin.
    (tmp_path / "outside_module.py").write_text("def used(beta=0.5): return beta\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = RUN + "import outside_module\njob.run.divergence = @outside_module.used\n"
    assert fake_verb(fake_verb.write("a.gin", text)) == (0, "")
    with open_run(tmp_path / "run", []) as run:
        assert not (run.path / "operative_config.gin").exists()
    assert "outside_module.used.beta = 0.5" in (run.path / "operative_config.gin").read_text()
    assert "beta" not in (run.path / "config.gin").read_text()


def test_a_resume_appends_and_says_nothing_when_nothing_changed(open_after, capsys):
    open_after()
    run = open_after()
    assert run.resumed and run.changes == ()
    assert len(read_launches(run.path)) == 2
    assert capsys.readouterr().err == ""


def test_a_changed_configuration_is_one_line_of_warning(open_after, capsys):
    open_after()
    run = open_after("--gin.STEPS=9", "--gin.job.Config.depth=4")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "warning" in error and "STEPS 5 → 9; job.Config.depth added (4)" in error
    assert run.changes == ("STEPS 5 → 9", "job.Config.depth added (4)")
    launches = read_launches(run.path)
    assert [launch["bindings"]["STEPS"] for launch in launches] == ["5", "9"]
    # The comparison is with the launch before, not with the first.
    assert open_after("--gin.STEPS=9", "--gin.job.Config.depth=4").changes == ()


def test_changed_bindings_in_words():
    before = {"A": "1", "B": "@x.f", "C": "3"}
    after = {"A": "1", "B": "@x.g", "D": "'a'"}
    assert changed_bindings(before, after) == ["B @x.f → @x.g", "C removed (3)", "D added ('a')"]


def test_a_half_written_launch_is_dropped(open_after):
    run = open_after()
    with open(run.path / "launches.jsonl", "ab") as file:
        file.write(b'{"started": "20')
    run = open_after()
    assert run.resumed and len(read_launches(run.path)) == 2


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(NotADirectoryError, match=r"MODEL_DIR .*run is a file"):
        open_run(tmp_path / "run", [])


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_of_clean_dirty_and_absent_checkouts(tmp_path, monkeypatch):
    absent = {"git_commit": None, "git_dirty": None}
    assert git_state(tmp_path) == absent
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "untracked").write_text("")
    assert git_state(tmp_path)["git_dirty"] is False
    (tmp_path / "a.py").write_text("2\n")
    assert git_state(tmp_path) == {"git_commit": commit, "git_dirty": True}
    (tmp_path / "installed").mkdir()  # a copy of the code inside someone else's repository
    assert git_state(tmp_path / "installed") == absent
    monkeypatch.setenv("PATH", "/nowhere")
    assert git_state(tmp_path) == absent


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(run_directory, "PACKAGES", ("jax", "no-such-package-at-all"))
    assert set(run_directory.environment()["versions"]) == {"gkd", "jax"}
