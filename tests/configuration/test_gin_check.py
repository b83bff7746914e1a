"""Configurations that are refused: exit code 2, one line, and the verb is not called."""

import pytest

from gkd.configuration import gin_check
from gkd.configuration.gin_files import REPOSITORY
from tests.cli.one_line import assert_one_line
from tests.fake_verb import RUN


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
        (RUN + "TASK = 7\n", ["nothing uses the macro TASK, as no method is there: add a method"]),
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


def test_a_file_without_dynamic_registration(fake_verb):
    code, error = fake_verb(fake_verb.write("a.gin", "job.run.steps = 3\n", header=False))
    assert code == 2
    assert_one_line(error, "a.gin", "from __gin__ import dynamic_registration")
