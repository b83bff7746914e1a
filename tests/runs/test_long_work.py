"""Long work is announced, repeated while it lasts, and ends with its time."""

import threading

import pytest

from gkd.runs.long_work import long_work


def test_it_is_repeated_with_its_time_while_it_lasts():
    lines, third = [], threading.Event()

    def say(line):
        lines.append(line)
        if len(lines) == 3:
            third.set()

    with long_work("compiling step", say, every=0.01):
        assert lines == ["compiling step …"]
        assert third.wait(10)
    assert lines[1] == lines[2] == "compiling step: 0s so far …"
    assert lines[-1] == "compiling step: 0s"


def test_what_failed_does_not_end_with_a_time():
    lines = []
    with pytest.raises(KeyError), long_work("loading", lines.append):
        raise KeyError
    assert lines == ["loading …"]
    assert threading.active_count() < 50  # its thread has ended


def test_lines_go_to_standard_error(capsys):
    with long_work("loading"):
        pass
    out, err = capsys.readouterr()
    assert (out, err) == ("", "loading …\nloading: 0s\n")
