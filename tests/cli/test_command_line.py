"""The command line: what wins, what is refused, in how many lines, with which exit code."""

import os
import subprocess
import sys

import gin
import pytest

from gkd.cli import command_line
from gkd.configuration.gin_files import REPOSITORY
from tests.cli.one_line import assert_one_line
from tests.fake_verb import RUN


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


# Configurations that are refused: exit code 2, one line, and the verb is not called


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


def test_a_reader_of_the_help_that_stops_reading_is_no_error():
    command = [sys.executable, "-m", "gkd", "train", "--help"]
    done = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    done.stdout.close()  # before anything is printed
    assert (done.stderr.read(), done.wait()) == (b"", 0)


def test_importing_gkd_imports_nothing_heavy():
    code = "import sys, gkd; print(len(sys.modules.keys() & {'jax', 'numpy', 'tensorflow', 'gin'}))"
    assert python("-c", code).stdout == "0\n"


def test_the_exit_code_reaches_the_shell():
    done = python("-m", "gkd", "train", "--gin_file=nothing.gin")
    assert done.returncode == 2
    assert_one_line(done.stderr, "nothing.gin")
