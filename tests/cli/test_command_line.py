"""The command line: what wins, what is refused, in how many lines, with which exit code."""

import os
import pathlib
import subprocess
import sys

import gin
import pytest

from gkd.cli import command_line
from gkd.configuration import gin_check
from gkd.configuration.gin_files import REPOSITORY
from tests.cli.one_line import assert_one_line

RUN = """\
job.run.steps = %STEPS
job.run.config = @job.Config()
job.run.mixing = %LAMBDA
job.run.divergence = %DIVERGENCE
job.Config.width = 3
STEPS = 5
LAMBDA = 0.25
DIVERGENCE = @job.forward
"""


def python(*arguments, cwd="/", **environment):
    """Runs `python` outside the test process, whose modules are all imported already."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
    )


# What runs, and which value wins


def test_a_run_file_calls_the_verb_with_its_values(fake_verb):
    assert fake_verb(fake_verb.write("a.gin", RUN)) == (0, "")
    (call,) = fake_verb.calls
    assert call["steps"] == 5 and call["mixing"] == 0.25 and call["divergence"] == "forward"
    assert call["config"] == fake_verb.module.Config(width=3, depth=2)


def test_overrides_win_over_files_and_later_files_over_earlier(fake_verb):
    first = fake_verb.write("a.gin", RUN)
    second = fake_verb.write("b.gin", "STEPS = 6\nLAMBDA = 0.5\n")
    assert fake_verb(first, second, "--gin.LAMBDA=1.0") == (0, "")
    assert fake_verb.calls[0]["steps"] == 6
    assert fake_verb.calls[0]["mixing"] == 1.0


def test_a_run_file_overrides_what_it_includes(fake_verb):
    base = fake_verb.write("base.gin", RUN)
    run = fake_verb.write("run.gin", f'include "{base}"\nLAMBDA = 0.75\njob.Config.width = 9\n')
    assert fake_verb(run) == (0, "")
    assert fake_verb.calls[0]["mixing"] == 0.75
    assert fake_verb.calls[0]["config"].width == 9


def test_a_second_include_of_a_file_changes_nothing(fake_verb):
    base = fake_verb.write("base.gin", RUN)
    run = fake_verb.write("run.gin", f'include "{base}"\nSTEPS = 8\njob.Config.width = 9\n')
    method = fake_verb.write("method.gin", f'include "{base}"\nLAMBDA = 0.75\n')
    both = fake_verb.write("both.gin", f'include "{run}"\ninclude "{method}"\n')
    assert fake_verb(run, method) == fake_verb(both) == (0, "")
    assert fake_verb.calls[0] == fake_verb.calls[1]
    assert fake_verb.calls[0]["steps"] == 8 and fake_verb.calls[0]["config"].width == 9
    assert fake_verb.calls[0]["mixing"] == 0.75


def test_a_file_that_the_command_names_is_read_there_even_if_one_included_it(fake_verb):
    base = fake_verb.write("base.gin", RUN)
    method = fake_verb.write("method.gin", f'include "{base}"\nLAMBDA = 0.75\n')
    run = fake_verb.write("run.gin", f'include "{method}"\nSTEPS = 8\n')
    other = fake_verb.write("other.gin", f'include "{base}"\nLAMBDA = 0.5\n')
    assert fake_verb(run, other, method) == (0, "")
    assert fake_verb.calls[0]["mixing"] == 0.75 and fake_verb.calls[0]["steps"] == 8


def test_values_of_every_kind_reach_the_verb_as_they_are_written(fake_verb):
    value = "{'a b': [1, -2.5e-7, None, ('x\\n\"', True)], 2: (3,), 'f': [@job.forward, %LAMBDA]}"
    text = RUN + f"one/two/job.Config.width = -4\njob.run.mixing = {value}\n"
    run = fake_verb.write("a.gin", text)
    assert fake_verb(run, "--gin.job.run.config=@one/two/job.Config()") == (0, "")
    assert fake_verb.calls[0]["config"].width == -4
    mixing = fake_verb.calls[0]["mixing"]
    assert mixing["f"][0]() == "forward" and mixing["f"][1] == 0.25
    assert {**mixing, "f": 0} == {"a b": [1, -2.5e-7, None, ('x\n"', True)], 2: (3,), "f": 0}


def test_a_function_parameter_and_a_reference_can_be_overridden(fake_verb):
    run = fake_verb.write("a.gin", RUN)
    assert fake_verb(run, "--gin.DIVERGENCE=@job.reverse", "--gin.job.run.steps=7") == (0, "")
    assert fake_verb.calls[0]["divergence"] == "reverse"
    assert fake_verb.calls[0]["steps"] == 7


def test_an_override_may_name_a_public_module_that_no_file_imports(fake_verb, monkeypatch):
    monkeypatch.setitem(gin_check.COMMAND_LINE_MODULES, fake_verb.name, "gkd.train")
    run = fake_verb.write("a.gin", RUN)
    code, error = fake_verb(run, f"--gin.DIVERGENCE=@{fake_verb.name}.reverse")
    assert (code, error) == (0, "")
    assert fake_verb.calls[0]["divergence"] == "reverse"


def test_the_public_modules_for_overrides_exist():
    for name, package in gin_check.COMMAND_LINE_MODULES.items():
        path = REPOSITORY.joinpath(*package.split("."), f"{name}.py")
        assert path.is_file() or path.with_suffix("").is_dir(), f"{package}.{name} is no module"


def test_a_second_command_in_one_process_starts_clean(fake_verb):
    run = fake_verb.write("a.gin", RUN)
    fake_verb(run, "--gin.job.Config.depth=8")
    fake_verb(run)
    assert [call["config"].depth for call in fake_verb.calls] == [8, 2]


def test_the_written_configuration_reproduces_the_run(fake_verb):
    fake_verb(fake_verb.write("a.gin", RUN), "--gin.LAMBDA=0.125")
    for text in (gin.config_str(), gin.operative_config_str()):
        again = fake_verb.folder / "again.gin"
        again.write_text(text)
        assert fake_verb(again) == (0, "")
    assert fake_verb.calls[0] == fake_verb.calls[1] == fake_verb.calls[2]


def test_includes_and_run_files_are_found_from_any_directory(fake_verb, monkeypatch, tmp_path):
    monkeypatch.setattr("gkd.configuration.gin_files.REPOSITORY", tmp_path)
    monkeypatch.setattr("gkd.cli.command_line.REPOSITORY", tmp_path, raising=False)
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


# Configurations that are refused: exit code 2, one line, and the verb is not called


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("LAMDA=7", ["--gin.LAMDA=7", "did you mean LAMBDA?"]),
        ("job.run.stpes=3", ["--gin.job.run.stpes=3", "no parameter stpes", "did you mean steps?"]),
        ("job.rnu.steps=3", ["job has no rnu", "did you mean run?"]),
        ("jbo.run.steps=3", ["jbo is not imported", "did you mean job?"]),
        ("divergence.x.y=3", ["divergence is not imported", "did you mean divergences?"]),
        ("DIVERGENCE=@job.revrese", ["@job.revrese", "did you mean reverse?"]),
        ("LAMBDA=half", ["'half' is not a gin value", """'--gin.LAMBDA="half"'"""]),
        ("LAMBDA=/tmp/x", ["--gin.LAMBDA=/tmp/x", """'--gin.LAMBDA="/tmp/x"'"""]),
        ("LAMBDA=[1", ["--gin.LAMBDA=[1"]),
        ("LAMBDA", ["write --gin.NAME=VALUE"]),
        ("LAMBDA=1\nSTEPS=2", ["one binding"]),
        ("STEPS=%STEPS", ["STEPS is defined by itself", "STEPS → STEPS"]),
        ("STEPS=%STPES", ["STPES", "used for STEPS in --gin.STEPS=%STPES", "--gin.STPES="]),
        ("job.run.steps=%gin.REQUIRED", ["job.run.steps", "without a value"]),
        ("job.CALLS.steps=3", ["job.CALLS is a list, not a function"]),
    ],
)
def test_wrong_overrides(fake_verb, override, parts):
    code, error = fake_verb(fake_verb.write("a.gin", RUN), f"--gin.{override}")
    assert code == 2
    assert_one_line(error, *parts)
    assert fake_verb.calls == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (RUN + "LAMDA = 7\n", ["a.gin:11: nothing uses the macro LAMDA; did you mean LAMBDA?"]),
        (RUN.replace("LAMBDA = 0.25\n", ""), ["LAMBDA (used for job.run.mixing in ", "a.gin:5)"]),
        (RUN + "job.run.stpes = 3\n", ["a.gin:11: job.run has no parameter stpes; did you mean"]),
        (RUN + "job.run:\n  stpes = 3\n", ["a.gin:12: job.run has no parameter stpes"]),
        (RUN + "job.run.config = @job.Confg()\n", ["a.gin:11", "did you mean Config?"]),
        (RUN + 'include "configs/nothing.gin"\n', ["a.gin:11", '"configs/nothing.gin": no such']),
        (RUN + "job.run.steps 3\n", ["a.gin:11: syntax error"]),
        (RUN + "job.run.steps = [3,\n", ["a.gin:", "syntax error"]),
        (RUN + "job.run.steps = three\n", ["a.gin:11: 'three' is not a gin value"]),
        (RUN + "import gkd.distill.divergance\n", ["a.gin:11: no module gkd.distill.divergance"]),
        (
            RUN.replace("job.Config.width = 3\n", ""),
            ["a.gin:4: job.Config needs a value for width"],
        ),
    ],
)
def test_wrong_files(fake_verb, text, parts):
    code, error = fake_verb(fake_verb.write("a.gin", text))
    assert code == 2
    assert_one_line(error, *parts)
    assert fake_verb.calls == []


def test_the_verb_s_own_required_parameter(fake_verb):
    code, error = fake_verb(fake_verb.write("a.gin", "job.run.mixing = 0.5\n"))
    assert code == 2
    assert_one_line(error, f"{fake_verb.name}.run needs a value for steps")


def test_two_missing_macros_are_one_line(fake_verb):
    text = RUN.replace("LAMBDA = 0.25\n", "").replace("STEPS = 5\n", "")
    code, error = fake_verb(fake_verb.write("a.gin", text))
    assert code == 2
    assert_one_line(error, "STEPS (used for job.run.steps", "LAMBDA (used for job.run.mixing")


def test_a_missing_gin_file(fake_verb):
    code, error = fake_verb("--gin_file=configs/runs/nothing.gin")
    assert code == 2
    assert_one_line(error, "--gin_file=configs/runs/nothing.gin: no such file")


def test_a_file_without_dynamic_registration(fake_verb):
    code, error = fake_verb(fake_verb.write("a.gin", "job.run.steps = 3\n", header=False))
    assert code == 2
    assert_one_line(error, "a.gin", "from __gin__ import dynamic_registration")


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


# Errors of the verb itself


def test_an_error_that_gkd_raises_is_one_line(fake_verb):
    code, error = fake_verb(fake_verb.write("a.gin", RUN), "--gin.STEPS=13")
    assert code == 1
    assert error == "gkd: error: 13 steps: choose another number\n"


def test_a_missing_file_is_one_line_wherever_it_is_raised(fake_verb):
    code, error = fake_verb(fake_verb.write("a.gin", RUN), "--gin.STEPS=17")
    assert code == 1
    assert_one_line(error, "No such file or directory: '/no/such/checkpoint'")


def test_the_environment_can_ask_for_the_traceback(fake_verb, monkeypatch):
    monkeypatch.setenv("GKD_TRACEBACK", "1")
    code, error = fake_verb(fake_verb.write("a.gin", RUN), "--gin.STEPS=13")
    assert code == 1
    assert "Traceback" in error and error.splitlines()[-1].startswith("gkd: error: 13 steps")


@pytest.mark.parametrize("steps", [14, 16, 19])  # a KeyError; ValueErrors of NumPy and of gkd
def test_mistakes_in_the_code_keep_their_traceback(fake_verb, steps):
    code, error = fake_verb(fake_verb.write("a.gin", RUN), f"--gin.STEPS={steps}")
    assert code == 1
    assert "Traceback" in error and error.splitlines()[-1].startswith("gkd: error: ")


def test_a_verb_stopped_by_a_signal_has_its_own_exit_code(fake_verb):
    code, error = fake_verb(fake_verb.write("a.gin", RUN), "--gin.STEPS=15")
    assert (code, error) == (75, "gkd: stopped: SIGTERM at step 9; saved\n")


def test_an_interrupted_verb(fake_verb):
    code, error = fake_verb(fake_verb.write("a.gin", RUN), "--gin.STEPS=18")
    assert (code, error) == (130, "gkd: interrupted\n")


# Usage


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "no verb"),
        (["tarin"], "did you mean train?"),
        (["ifner"], "did you mean infer?"),
        (["train"], "needs at least one --gin_file"),
        (["train", "--gin_file"], "--gin_file needs a file name"),
        (["train", "--ginfile=x"], "did you mean --gin_file?"),
        (["train", "x.gin"], "unknown option 'x.gin'"),
    ],
)
def test_wrong_usage(arguments, part, capsys):
    assert command_line.main(arguments) == 2
    assert_one_line(capsys.readouterr().err, part, "--help")


def test_both_spellings_of_gin_file():
    command = command_line.parse_arguments(["train", "--gin_file", "a", "--gin_file=b=c"])
    assert command.gin_files == ("a", "b=c")


def test_help_is_quick_and_complete_from_any_directory():
    done = python("-X", "importtime", "-m", "gkd", "--help")
    assert done.returncode == 0
    for word in (*command_line.VERBS, "--gin_file", "--gin.LAMBDA=0.5", "exit codes"):
        assert word in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "tensorflow", "seqio", "flax", "numpy"}


def test_importing_gkd_imports_nothing_heavy():
    code = "import sys, gkd; print(len(sys.modules.keys() & {'jax', 'numpy', 'tensorflow', 'gin'}))"
    assert python("-c", code).stdout == "0\n"


def test_the_exit_code_reaches_the_shell():
    done = python("-m", "gkd", "train", "--gin_file=nothing.gin")
    assert done.returncode == 2
    assert_one_line(done.stderr, "nothing.gin")
