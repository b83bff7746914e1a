"""A benchmark's options and its gin overrides are told apart; anything else is an error."""

import argparse

import pytest

from benchmarks.arguments import parse


def parser():
    made = argparse.ArgumentParser(prog="benchmark")
    made.add_argument("--rounds", type=int, default=5)
    return made


def test_overrides_keep_their_order_and_their_values():
    given, overrides = parse(parser(), ["--gin.A='--x=1'", "--rounds=2", "--gin.B/c.d=3"])
    assert given.rounds == 2 and overrides == ("A='--x=1'", "B/c.d=3")


@pytest.mark.parametrize("wrong", ["--round_s=2", "gin.A=1", "--gin_A=1"])
def test_what_is_neither_ends_with_its_name(wrong, capsys):
    with pytest.raises(SystemExit):
        parse(parser(), ["--gin.A=1", wrong])
    assert f"unrecognized arguments: {wrong}" in capsys.readouterr().err
