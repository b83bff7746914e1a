"""The provenance of a result: the commit, the packages, the command line."""

import json
import subprocess
import sys

from gkd.runs import provenance
from gkd.runs.provenance import git_state


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
    monkeypatch.setattr(provenance, "PACKAGES", ("jax", "no-such-package-at-all"))
    assert set(provenance.environment()["versions"]) == {"gkd", "jax"}


def test_the_record_holds_the_command_line_and_only_json(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gkd", "plan", "--price=2"])
    found = provenance.provenance()
    assert found["command_line"] == ["gkd", "plan", "--price=2"]
    assert provenance.provenance(("a",))["command_line"] == ["a"]
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["gkd"] and found["python"].count(".") == 2
    assert {"git_commit", "git_dirty", "devices", "processes"} <= set(found)
