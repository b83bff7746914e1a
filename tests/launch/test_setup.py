"""launch/setup.sh with a pretended Python: when it installs, and what it says when it cannot."""

import os
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gkd.configuration.gin_files import REPOSITORY

REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "constraints.txt")

# Answers like python3.11; `-m venv FOLDER` copies itself there, `-m pip` only leaves a line.
PYTHON = """\
#!/bin/sh
case "$*" in
    *"version_info"*) exit ${FAKE_OLD:-0} ;;
    "-m venv"*) for venv in "$@"; do :; done; mkdir -p "$venv/bin"; cp "$0" "$venv/bin/python" ;;
    *"-m pip install"*) echo "$@" >>"$FAKE_LOG"; exit ${FAKE_PIP:-0} ;;
    "- "*) exec REAL "$@" ;;
    *) ;;
esac
"""


class Checkout:
    """A copy of the script and the requirements, with only a few programs on the PATH."""

    def __init__(self, folder):
        self.root = folder / "check out"  # a space, as in many a home directory
        (self.root / "launch").mkdir(parents=True)
        shutil.copy(REPOSITORY / "launch" / "setup.sh", self.root / "launch")
        for name in REQUIREMENTS:
            (self.root / name).write_text("jax\n")
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("bash", "sh", "dirname", "cat", "rm", "cp", "mkdir"):
            (self.programs / name).symlink_to(shutil.which(name))
        self.log = folder / "pip.log"

    def add_python(self, name):
        path = self.programs / name
        path.write_text(PYTHON.replace("REAL", sys.executable))
        path.chmod(0o755)
        return path

    def __call__(self, **environment):
        """Runs the script from another directory; returns exit code and stderr."""
        done = subprocess.run(
            ["bash", self.root / "launch" / "setup.sh"],
            cwd="/",
            env={"PATH": str(self.programs), "FAKE_LOG": str(self.log)} | environment,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stderr

    @property
    def installs(self):
        return self.log.read_text().count("pip install") if self.log.exists() else 0


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_without_python_one_clear_line(checkout):
    code, error = checkout()
    assert code == 1
    assert error.count("\n") == 1 and error.startswith("gkd: error: Python 3.11, 3.12 or 3.13 is")
    assert not (checkout.root / ".venv").exists()


def test_an_older_python_does_not_count(checkout):
    checkout.add_python("python3")
    code, error = checkout(FAKE_OLD="1")
    assert code == 1 and error.count("\n") == 1 and "PYTHON=/path/to/python" in error


def test_it_installs_once_and_again_only_when_requirements_change(checkout):
    checkout.add_python("python3.11")
    assert checkout()[0] == 0 and checkout.installs == 1
    assert checkout() == (0, "") and checkout.installs == 1
    for number, name in enumerate(REQUIREMENTS, start=2):
        (checkout.root / name).write_text("jax\nflax\n")
        assert checkout()[0] == 0 and checkout.installs == number
        assert checkout() == (0, "") and checkout.installs == number
    for name in REQUIREMENTS:
        assert str(checkout.root / name) in checkout.log.read_text()


def test_a_failed_installation_is_one_line_and_tried_again(checkout):
    checkout.add_python("python3.12")
    code, error = checkout(FAKE_PIP="1")
    assert code == 1 and error.splitlines()[-1].startswith("gkd: error: pip could not install")
    assert checkout()[0] == 0 and checkout.installs == 2


def test_a_broken_environment_is_made_anew(checkout):
    checkout.add_python("python3.11")
    checkout()
    (checkout.root / ".venv" / "bin" / "python").unlink()  # its interpreter was removed
    code, error = checkout()
    assert code == 0 and "making" in error


def test_the_caller_can_choose_the_interpreter(checkout, tmp_path):
    other = tmp_path / "other"
    shutil.move(checkout.add_python("python9"), other)
    assert checkout()[0] == 1
    code, error = checkout(PYTHON=str(other))
    assert code == 0 and str(other) in error


@pytest.mark.parametrize("name", ["setup.sh", "test.sh", "quickstart.sh"])
def test_scripts_are_valid_bash(name):
    subprocess.run(["bash", "-n", REPOSITORY / "launch" / name], check=True)
    assert os.access(REPOSITORY / "launch" / name, os.X_OK)


def test_constraints_satisfy_the_requirements_and_name_no_torch():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in pairs}
    assert "torch" not in pins
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (REPOSITORY / name).read_text().splitlines():
            if line and not line.startswith("#"):
                requirement = Requirement(line)
                assert pins[canonicalize_name(requirement.name)] in requirement.specifier, line
