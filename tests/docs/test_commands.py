"""Every command of the documentation is one: parsed and configured, or printed by its dry run."""

import importlib.metadata
import os
import re
import subprocess
import sys

import gin
import pytest

from gkd.cli import command_line, supervisor
from gkd.new import data_facts
from tests.docs import pages
from tests.paths import REPOSITORY

PAGES = [page for page in pages.names() if pages.blocks(page, "bash")]
# Commands of other programs, with what an installation of gkd does not have.
OTHERS = {"gcsfuse", "gcloud", "hf", "source"}
TRANSFORMERS = ("torch", "transformers", "sentencepiece")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the mounted bucket that the documentation speaks of."""
    (tmp_path / "buckets" / "my-bucket").mkdir(parents=True)
    monkeypatch.setenv("GKD_BUCKETS", str(tmp_path / "buckets"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gin.clear_config()


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_can_be_run(page, place, monkeypatch):
    for block in pages.blocks(page):
        if block.file:
            (place / block.file).write_text(block.text)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    monkeypatch.setattr(data_facts, "load_vocabulary", lambda name: (None, "no network"))
    (place / "examples").symlink_to(REPOSITORY / "examples")
    found = list(pages.commands(page))
    assert found
    for where, environment, words in found:
        try:
            check(words, environment)
        except (ValueError, OSError, AssertionError) as error:
            raise AssertionError(f"{where}: {error}") from error


def check(words, environment):
    program, *rest = words
    if program == "python" and rest[:2] == ["-m", "gkd"]:
        check_gkd(rest[2:])
    elif program == "python" and rest[0] == "-m":
        check_script(REPOSITORY.joinpath(*rest[1].split(".")).with_suffix(".py"), rest[2:])
    elif program == "python":
        check_script(REPOSITORY / rest[0], rest[1:])
    elif program == "bash":
        check_bash(rest, environment)
    elif program == "pip":
        check_pip(rest)
    else:
        assert program in OTHERS, f"no test knows the command {program}"


def check_gkd(arguments):
    """Configures a command, so that only the call itself is left."""
    job = tuple(supervisor._OPTIONS)
    parsed = command_line.parse_arguments([a for a in arguments if not a.startswith(job)])
    if isinstance(parsed, str):
        return  # a help text
    run = command_line.configure(parsed)
    if parsed.verb == "new":
        run()  # later commands use its files
    if isinstance(parsed, command_line.PlainCommand) and parsed.arguments.get("task"):
        task = parsed.arguments["task"]
        command_line.read_configuration(
            command_line.Command("evaluate", (task,), tuple(parsed.arguments["gin"] or ()))
        )


def check_script(path, arguments):
    """A script exists and knows its options."""
    text = path.read_text()
    if "participants.add_arguments(" in text:  # those of all comparisons
        text += (REPOSITORY / "benchmarks" / "participants.py").read_text()
    for argument in arguments:
        if argument.startswith("--gin."):
            assert "benchmarks.arguments import parse" in text, f"{path.name} has no {argument}"
        elif argument.startswith("--"):
            assert f'"{argument.partition("=")[0]}"' in text, f"{path.name} has no {argument}"


def check_bash(words, environment):
    script, *arguments = words
    path = REPOSITORY / script
    assert path.is_file(), f"no {script}"
    if script in ("launch/tpu_vm.sh", "launch/gke_xpk.sh", "launch/local_multiprocess.sh"):
        arguments = [word for word in arguments if word != "--dry-run"]
        done = subprocess.run(
            ["bash", str(path), "--dry-run", *arguments],
            capture_output=True, text=True, cwd=REPOSITORY,
            env={**os.environ, "PYTHON": sys.executable, **environment},
        )  # fmt: skip
        assert done.returncode == 0 and done.stdout, done.stderr
        inner = [word for word in arguments if word in command_line.VERBS]
        if inner:
            check_gkd(arguments[arguments.index(inner[0]) :])
    elif script == "launch/methods.sh":
        known = re.search(r"choose ([a-z_, ]+ or [a-z_]+)", path.read_text())[1]
        assert arguments[0] == "TASK" or arguments[0] in re.findall(r"\w+", known)
    elif script == "launch/claims.sh":
        claims = {path.stem for path in (REPOSITORY / "configs/sweeps/claims").glob("*.gin")}
        named = re.search(r"all=\(([a-z_ ]+)\)", path.read_text())[1].split()
        assert set(named) == claims and set(arguments) <= claims
    elif script == "launch/pretrained.sh":
        name, _ = arguments  # and the model's folder
        assert name in re.search(r"choose (\w+ or \w+)", path.read_text())[1].split(" or ")
        assert (REPOSITORY / f"configs/sweeps/{name}.gin").exists()
    elif script == "launch/quickstart.sh":
        check_script(REPOSITORY / "gkd/quickstart/quickstart.py", arguments)
    elif script == "launch/test.sh":
        assert all((REPOSITORY / word).exists() for word in arguments if word.startswith("tests/"))
    else:
        assert not arguments, f"no test knows arguments of {script}"


def check_pip(words):
    assert words[0] == "install"
    for word in words[1:]:
        if word.startswith("libtpu=="):  # the compiler of this very jaxlib
            needs = [r for r in importlib.metadata.requires("jax") if r.startswith("libtpu")]
            assert needs[0].startswith(word.rpartition(".")[0]), needs
        elif word.endswith(".txt"):
            assert (REPOSITORY / word).is_file()
        else:
            assert word in (
                "--constraint",
                "--editable",
                ".",
                "jax[tpu]",
                "jax[cuda13]",
                *TRANSFORMERS,
            ), word
