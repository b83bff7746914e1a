"""The arguments of the command line: verbs, their options, and the help text."""

import argparse
import dataclasses
import importlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.cli import plain_arguments
from gkd.errors import UserError
from gkd.runs.signals import (
    EXIT_LOST,
    EXIT_STOPPED,
)


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the command line, whose function is imported only when it is used.

    Attributes:
      module, function: names of the module and the function.
      summary: line in the help text.
      plain: true if it takes options of its own instead of gin files; `plain_arguments` or the
        module's `add_arguments(parser)` declares them, and the function gets them as keywords.
      about: name of another verb, whose gin files it takes beside options of its own; it is called
        with the `Experiment` that they configure.
      reads_files: true if it reads the files that gin files name; other verbs only pass the names
        on, including gs:// paths.
    """

    module: str
    function: str
    summary: str
    plain: bool = False
    about: str | None = None
    reads_files: bool = False

    def load(self, function: str = "") -> Callable[..., Any]:
        """Imports the function, or another of its module."""
        return getattr(importlib.import_module(self.module), function or self.function)

    @property
    def selector(self) -> str:
        """Name of the function in gin files: `train.train`."""
        return f"{self.module.rpartition('.')[2]}.{self.function}"


VERBS = {
    "train": Verb(
        "gkd.train.train", "train", "train a student: SFT, supervised KD, GKD", reads_files=True
    ),
    "evaluate": Verb(
        "gkd.evaluate.evaluate", "evaluate", "measure a checkpoint on a task", reads_files=True
    ),
    "sweep": Verb("gkd.sweep.sweep", "sweep", "train every cell of a grid, or print their table"),
    "plan": Verb(
        "gkd.plan.plan", "plan", "whether a run fits a TPU slice, and what it costs", about="train"
    ),
    "report": Verb(
        "gkd.report.report", "report", "write a page of figures and tables about runs", plain=True
    ),
    "new": Verb("gkd.new.new", "new", "write run files for your own data", plain=True),
    "infer": Verb(
        "gkd.infer.infer", "infer_options", "write outputs for a file of inputs", plain=True
    ),
    "convert": Verb(
        "gkd.convert.convert", "convert", "write another checkpoint format", plain=True
    ),
}

USAGE = """\
usage: python -m gkd VERB --gin_file=FILE [--gin_file=FILE ...] [--gin.NAME=VALUE ...]
       python -m gkd VERB ARGUMENTS

verbs with gin files:
{gin_verbs}

verbs with arguments of their own (python -m gkd VERB --help lists them):
{plain_verbs}

options of verbs with gin files:
  --gin_file=FILE   a run file, e.g. configs/runs/NAME.gin; later files override earlier ones
  --gin.NAME=VALUE  overrides a macro (--gin.LAMBDA=0.5), a function
                    (--gin.DIVERGENCE=@divergences.reverse_kl) or a parameter
                    (--gin.experiment.Schedule.keep_last=5); text needs quotes:
                    '--gin.MODEL_DIR="runs/a"'
  --allow_module=NAME  lets gin files import and use this Python module, whose code then runs; by
                    default they may use gkd's own functions only
  --help            this text; after train, evaluate or sweep also every macro with its default
                    and meaning, and with --gin_file the values that this run has;
                    `python -m gkd plan --help` has that verb's further options

exit codes: 0 done, 1 failed, 2 wrong usage or configuration; the same command continues after
            {stopped} (SIGTERM, SIGHUP or Ctrl-C, all saved) and {lost} (another process was lost)
environment: GKD_TRACEBACK=1 prints the traceback of every error; GKD_BUCKETS=FOLDER holds the
            mounts of buckets, gs://NAME/path being FOLDER/NAME/path; GKD_LEASE_SECONDS=60 is the
            heartbeat timeout after which an output's writer on another host counts as dead
"""


_GIN_OPTIONS = " --gin_file=FILE [--gin_file=FILE ...] [--gin.NAME=VALUE ...]"


class UsageError(UserError, ValueError):
    """Raised for arguments that form no command."""


@dataclasses.dataclass(frozen=True)
class Command:
    """The parsed arguments of a verb with gin files."""

    verb: str
    gin_files: tuple[str, ...]
    overrides: tuple[str, ...]  # NAME=VALUE
    allowed: tuple[str, ...] = ()  # modules that gin files may use besides gkd's
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the verb's own

    @property
    def configured(self) -> Verb:
        """The verb that the gin files configure."""
        return VERBS[VERBS[self.verb].about or self.verb]


@dataclasses.dataclass(frozen=True)
class PlainCommand:
    """The parsed arguments of a verb with arguments of its own."""

    verb: str
    arguments: Mapping[str, Any]


def usage() -> str:
    """Returns the help text."""

    def listed(plain: bool) -> str:
        verbs = [(name, verb) for name, verb in VERBS.items() if verb.plain == plain]
        return "\n".join(f"  {name:<10}{verb.summary}" for name, verb in verbs)

    codes = {"stopped": EXIT_STOPPED, "lost": EXIT_LOST}
    return USAGE.format(gin_verbs=listed(False), plain_verbs=listed(True), **codes)


def parse_arguments(arguments: Sequence[str]) -> Command | PlainCommand | str:
    """Splits the arguments.

    Args:
      arguments: the command line after `python -m gkd`.

    Returns:
      The command, or the text to print when help is asked for.

    Raises:
      UsageError: no or unknown verb, unknown option, no gin file, a plain verb's wrong argument.
    """
    if not arguments:
        raise UsageError(f"no verb; one of {', '.join(VERBS)}")
    verb, *options = arguments
    if verb in VERBS and VERBS[verb].plain:
        return _parse_plain(verb, options)
    if verb in VERBS and VERBS[verb].about:
        return _parse_about(verb, options)
    if verb in ("--help", "-h", "help"):
        return usage()
    if verb not in VERBS:
        raise UsageError(f"unknown verb {verb!r}{_suggestion(verb, VERBS)}")
    if "--help" in options or "-h" in options:
        return _gin_help(verb, [option for option in options if option not in ("--help", "-h")])
    return _parse_gin(verb, options)


def _gin_help(verb: str, options: Sequence[str]) -> str:
    """The help text of a verb with gin files, followed by the macros of the command's files."""
    return f"{usage()}\n{_macros(verb, options)}"


def _macros(verb: str, options: Sequence[str]) -> str:
    """The macros of a verb's defaults, or of the gin files that the options name."""
    from gkd.cli.macro_help import macro_help

    named = any(option.partition("=")[0] == "--gin_file" for option in options)
    command = _parse_gin(verb, options) if named else Command(verb, (), ())
    return macro_help(verb, command.gin_files, command.overrides)


def _parse_plain(verb: str, options: Sequence[str]) -> PlainCommand | str:
    add_arguments = plain_arguments.ADD_ARGUMENTS.get(verb) or VERBS[verb].load("add_arguments")
    parser = argparse.ArgumentParser(
        prog=f"python -m gkd {verb}{_GIN_OPTIONS if VERBS[verb].about else ''}",
        description=VERBS[verb].summary,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser)
    if "--help" in options or "-h" in options:
        return parser.format_help()

    def refuse(message: str) -> None:  # argparse would print its usage and exit
        raise UsageError(f"{verb}: {message}")

    parser.error = refuse
    known = re.findall(r"--[\w-]+", parser.format_usage())
    if "--gin" in known:  # spelled as for the verbs with gin files
        options = [re.sub(r"^--gin\.", "--gin=", option) for option in options]
    try:
        parsed, unknown = parser.parse_known_args(options)
    except UsageError:
        # A misspelt option is also reported as the lack of the right one.
        names = [option.partition("=")[0] for option in options if option.startswith("--")]
        parsed, unknown = None, [name for name in names if name not in known]
        if not unknown:
            raise
    if unknown:
        name = unknown[0].partition("=")[0]
        raise UsageError(f"{verb}: unknown argument {name!r}{_suggestion(name, known)}")
    return PlainCommand(verb, vars(parsed))


def _parse_about(verb: str, options: Sequence[str]) -> Command | str:
    """Gin's options, and then all others as the verb's own."""
    is_gin, rest = [], []
    remaining = iter(options)
    for option in remaining:
        if option in ("--gin_file", "--allow_module"):
            is_gin += [option, *itertools.islice(remaining, 1)]
        elif option.startswith(("--gin_file=", "--gin.", "--allow_module=")):
            is_gin.append(option)
        else:
            rest.append(option)
    own = _parse_plain(verb, rest)
    if isinstance(own, str):
        return f"{own}\n{_macros(VERBS[verb].about, is_gin)}"
    return dataclasses.replace(_parse_gin(verb, is_gin), options=own.arguments)


def _parse_gin(verb: str, options: Sequence[str]) -> Command:
    gin_files, overrides, allowed = [], [], []
    remaining = iter(options)
    for option in remaining:
        name, equals, value = option.partition("=")
        if name == "--gin_file":
            value = value if equals else next(remaining, "")
            if not value:
                raise UsageError("--gin_file needs a file name")
            gin_files.append(value)
        elif name == "--allow_module":
            value = value if equals else next(remaining, "")
            if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", value):
                raise UsageError(f"--allow_module is {value!r}: name a module, e.g. my.divergences")
            allowed.append(value)
        elif option.startswith("--gin."):
            overrides.append(option.removeprefix("--gin."))
        else:
            known = ["--gin_file", "--gin.", "--allow_module", "--help"]
            raise UsageError(f"unknown option {option!r}{_suggestion(name, known)}")
    if not gin_files:
        raise UsageError(f"{verb} needs at least one --gin_file=FILE")
    return Command(verb, tuple(gin_files), tuple(overrides), tuple(allowed))


def _suggestion(name: str, candidates: Any) -> str:
    from gkd.configuration.gin_check import suggestion

    return suggestion(name, candidates, "one of")
