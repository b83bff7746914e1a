"""Gin files: where they are found and what they include."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.cli.one_line import assert_one_line
from tests.fake_verb import RUN
from tests.paths import REPOSITORY


def test_includes_and_run_files_are_found_from_any_directory(fake_verb, monkeypatch, tmp_path):
    monkeypatch.setattr("gkd.configuration.gin_files.CONFIGS_ROOT", tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere" / "configs").mkdir(parents=True)
    fake_verb.write("configs/base.gin", RUN)
    # A file of the same name below the current directory must not be read.
    fake_verb.write("elsewhere/configs/base.gin", "not gin\n")
    fake_verb.write("configs/run.gin", 'include "configs/base.gin"\n')
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert fake_verb("--gin_file=configs/run.gin") == (0, "")
    assert fake_verb.calls[0]["mixing"] == 0.25
    assert pathlib.Path.cwd() == tmp_path / "elsewhere"


def test_a_run_file_of_the_current_directory_is_found(fake_verb, monkeypatch, tmp_path):
    fake_verb.write("mine.gin", RUN)
    monkeypatch.chdir(tmp_path)
    assert fake_verb("--gin_file=mine.gin") == (0, "")


def test_a_missing_gin_file(fake_verb):
    code, error = fake_verb("--gin_file=configs/runs/nothing.gin")
    assert code == 2
    assert_one_line(error, "--gin_file=configs/runs/nothing.gin: no such file")


def test_includes_in_a_circle(fake_verb):
    path = fake_verb.folder / "a.gin"
    fake_verb.write("b.gin", f'include "{path}"\n')
    fake_verb.write("a.gin", f'include "{fake_verb.folder / "b.gin"}"\n')
    code, error = fake_verb(path)
    assert code == 2
    assert_one_line(error, "b.gin: includes ", "a.gin, which includes it")


def test_an_include_below_a_line_that_it_undoes(fake_verb):
    base = fake_verb.write("base.gin", RUN)
    run = fake_verb.write("run.gin", f'LAMBDA = 0.75\ninclude "{base}"\n')
    code, error = fake_verb(run)
    assert code == 2
    assert_one_line(error, "run.gin:3: sets LAMBDA", "put includes first")


def test_an_include_is_found_beside_the_file_that_names_it(fake_verb, monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    fake_verb.write("mine/base.gin", RUN)
    fake_verb.write("mine/run.gin", 'include "base.gin"\n')
    monkeypatch.chdir(tmp_path)
    assert fake_verb("--gin_file=mine/run.gin") == (0, "")
    assert fake_verb.calls[0]["mixing"] == 0.25


def test_a_wheel_brings_the_run_files_along(tmp_path):
    """Built as pip does, imported from another directory, without the repository beside it."""
    pytest.importorskip("setuptools", reason="building the package needs setuptools")
    for name in ("gkd", "configs", "setup.py", "pyproject.toml"):
        os.symlink(REPOSITORY / name, tmp_path / name)
    for name in ("requirements.txt", "requirements-dev.txt", "README.md"):
        (tmp_path / name).write_text("")
    built = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from gkd.configuration import gin_files; "
        "reader = gin_files.GinReader(); "
        "reader.read_file(gin_files.resolve_gin_file('configs/runs/quickstart/gkd.gin')); "
        "print(gin_files.__file__, len(reader.sources), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(built)], cwd=tmp_path / "installed" / "gkd" / "data",
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    file, sources = done.stdout.split()
    assert file == str(built / "gkd/configuration/gin_files.py")
    assert int(sources) >= 4  # the run, its task, model and method
    shipped = {path.relative_to(built / "gkd") for path in built.rglob("*.gin")}
    assert shipped == {
        path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.gin")
    }
    assert (built / "gkd/vocabularies/arithmetic.model").is_file()
