"""Verbs with arguments of their own: parsed, refused, helped, and their errors."""

import sys
import types

import pytest

from gkd.cli import arguments, command_line
from gkd.errors import InvalidValue
from gkd.runs.signals import Stopped
from tests.cli.one_line import assert_one_line


@pytest.fixture
def plain_verb(monkeypatch):
    """The calls of a verb with arguments of its own, `copy SRC [--times N] [--dry_run] --to X`."""
    calls = []

    def add_arguments(parser):
        parser.add_argument("source", help="what to copy")
        parser.add_argument("--times", type=int, default=1, help="how often")
        parser.add_argument("--dry_run", action="store_true", help="only say what would be done")
        parser.add_argument("--to", required=True, choices=("here", "there"), help="where")

    def copy(**keywords):
        calls.append(keywords)
        if keywords["times"] == 13:
            raise InvalidValue("13 times:\nchoose another number")
        if keywords["times"] == 14:
            raise Stopped("SIGTERM after 9; saved")

    module = types.ModuleType("gkd.convert.fake_copy")
    module.add_arguments = add_arguments
    # Errors count as GKD's own by the module that raises them.
    module.copy = types.FunctionType(
        copy.__code__, {**copy.__globals__, "__name__": module.__name__}, closure=copy.__closure__
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    verb = arguments.Verb(module.__name__, "copy", "copies things", plain=True)
    monkeypatch.setitem(command_line.VERBS, "copy", verb)
    return calls


def test_a_plain_verb_is_called_with_its_arguments(plain_verb):
    assert command_line.main(["copy", "a=b", "--times=3", "--to", "here"]) == 0
    assert command_line.main(["copy", "--dry_run", "--to=there", "help"]) == 0
    assert plain_verb == [
        {"source": "a=b", "times": 3, "dry_run": False, "to": "here"},
        {"source": "help", "times": 1, "dry_run": True, "to": "there"},
    ]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["a", "--to=here", "--tmies=3"], ["unknown argument '--tmies'; did you mean --times?"]),
        (["a", "--to=here", "--dry-run"], ["'--dry-run'; did you mean --dry_run?"]),
        (["a", "--too=here"], ["unknown argument '--too'; did you mean --to?"]),
        (["a", "--to=here", "--tim=3"], ["unknown argument '--tim'; did you mean --times?"]),
        (["a", "b", "--to=here"], ["unknown argument 'b'"]),
        (["--to=here"], ["required: source"]),
        (["a"], ["required: --to"]),
        (["a", "--to=heer"], ["--to", "'heer'", "'here', 'there'"]),
        (["a", "--to=here", "--times=x\ny"], ["--times", "invalid int value"]),
        (["a", "--to=here", "--gin_file=x"], ["unknown argument '--gin_file'"]),
    ],
)
def test_wrong_arguments_of_a_plain_verb(plain_verb, arguments, parts, capsys):
    assert command_line.main(["copy", *arguments]) == 2
    assert_one_line(capsys.readouterr().err, "copy: ", "(python -m gkd copy --help)", *parts)
    assert plain_verb == []


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_a_plain_verb_has_its_own_help(plain_verb, option, capsys):
    assert command_line.main(["copy", "a", option]) == 0
    output = capsys.readouterr().out
    for part in ("usage: python -m gkd copy", "copies things", "--times", "how often (default: 1)"):
        assert part in output
    assert "--gin_file" not in output and plain_verb == []


def test_errors_and_signals_of_a_plain_verb(plain_verb, capsys):
    assert command_line.main(["copy", "a", "--to=here", "--times=13"]) == 1
    assert capsys.readouterr().err == "gkd: error: 13 times: choose another number\n"
    assert command_line.main(["copy", "a", "--to=here", "--times=14"]) == 75
    assert capsys.readouterr().err == "gkd: stopped: SIGTERM after 9; saved\n"
