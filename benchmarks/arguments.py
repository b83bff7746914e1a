"""Parses the arguments of benchmarks that take gin files and --gin.NAME=VALUE overrides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_GIN = "--gin."


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Parses a benchmark's own options, and collects the gin overrides among the arguments.

    Args:
      parser: knows the benchmark's own options.
      arguments: the command line.

    Returns:
      The options, and the overrides as gin bindings. Anything else ends the process with the
      parser's message.

    >>> parser = argparse.ArgumentParser()
    >>> _ = parser.add_argument("--rounds", type=int)
    >>> parse(parser, ["--gin.BATCH_SIZE=8", "--rounds=2"])
    (Namespace(rounds=2), ('BATCH_SIZE=8',))
    """
    given, rest = parser.parse_known_args(arguments)
    if wrong := [argument for argument in rest if not argument.startswith(_GIN)]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    return given, tuple(argument.removeprefix(_GIN) for argument in rest)
