"""The command line: configures a verb by gin files and overrides, runs it, prints its errors."""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gkd.cli import platforms
from gkd.cli.arguments import VERBS, Command, PlainCommand, UsageError, parse_arguments
from gkd.configuration import buckets
from gkd.configuration.configured_experiment import experiment_and_directory, experiment_of
from gkd.errors import JobError, one_line, report
from gkd.parallel import job_messages, lost_processes, processes
from gkd.runs.signals import (
    EXIT_INTERRUPTED,
    EXIT_LOST,
    EXIT_STOPPED,
    Stopped,
    quick_interrupt,
)

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def configure(command: Command | PlainCommand) -> Callable[[], Any]:
    """Reads, checks and applies a command's gin files and overrides; a plain verb has none.

    Gin's state is global: bindings of an earlier call are cleared.

    Args:
      command: the parsed arguments.

    Returns:
      The verb's function, to be called without arguments.

    Raises:
      ConfigError: the configuration is wrong; the text is one line.
    """
    if isinstance(command, PlainCommand):
        buckets.translate_environment()
        arguments = buckets.local_in(dict(command.arguments))
        return functools.partial(VERBS[command.verb].load(), **arguments)
    import gin

    from gkd.configuration.gin_files import ConfigError

    reader = read_configuration(command)
    if processes.is_multiprocess(os.environ):
        from gkd.cli import job_settings

        own = job_settings.facts(command.verb, command.options, reader)
        job_messages.check_same("settings", own, processes.start_seconds(os.environ))
    if VERBS[command.verb].reads_files:
        buckets.translate_environment()
        reader.replace_values(buckets.local_in)
    verb = command.configured
    function = verb.load()
    gin.clear_config()
    try:
        for text in reader.gin_texts():
            gin.parse_config(text)
        if not _is_registered(function):  # no file binds anything of it
            gin.external_configurable(function, module=verb.module)
        gin.finalize()
    except (ValueError, SyntaxError) as error:  # what the check did not foresee
        raise ConfigError(one_line(error)) from error
    configured = gin.get_configurable(function)
    if command.verb == "sweep" and command.allowed:
        return functools.partial(configured, allow_module=command.allowed)
    if VERBS[command.verb].about:
        return functools.partial(_run_about, command, function)
    return configured


def _run_about(command: Command, function: Callable[..., Any]) -> Any:
    """Runs a verb about an experiment, of whose vocabulary the size is enough."""
    from gkd.vocabularies.placeholder import placeholders

    with placeholders():
        experiment, directory = experiment_and_directory(function)
    options = dict(command.options)
    options["measured"] = options["measured"] or directory
    return VERBS[command.verb].load()(experiment, **options)


def configured_experiment(command: Command) -> Any:
    """Configures `train` and returns the `Experiment` that it would run.

    Args:
      command: the parsed arguments.

    Raises:
      ConfigError: anything wrong with the configuration, in one line.
    """
    configure(command)
    return experiment_of(command.configured.load())


def read_configuration(command: Command) -> Any:
    """Reads and checks a command's gin files and overrides; gin's own state is not touched.

    Args:
      command: the parsed arguments.

    Returns:
      The `gin_files.GinReader` that holds all bindings.

    Raises:
      ConfigError: anything wrong with the configuration, in one line.
    """
    from gkd.configuration import gin_check, gin_settings
    from gkd.configuration.gin_files import GinReader, resolve_gin_file

    reader = GinReader()
    for path in [resolve_gin_file(name) for name in command.gin_files]:
        reader.read_file(path)
    imports = gin_check.override_imports(command.overrides, reader)
    for override in command.overrides:
        reader.read_override(override, imports)
    verb = command.configured
    # Before anything is imported: a module runs code, and JAX and TensorFlow take seconds.
    gin_settings.check(reader, (verb.module, *command.allowed))
    gin_check.check(reader, verb.load(), verb.selector)
    return reader


def _is_registered(function: Callable[..., Any]) -> bool:
    import gin

    try:
        gin.get_configurable(function)
    except ValueError:
        return False
    return True


def _fail(error: BaseException, code: int) -> int:
    loss = lost_processes.find_loss(error, os.environ)
    if loss is not None:
        report(JobError(loss.line))
        job_messages.end_job(loss.line, EXIT_LOST, loss.silent)
        return EXIT_LOST
    report(error)
    job_messages.end_job(one_line(error), code)
    return code


def _interrupted() -> int:
    print("gkd: interrupted", file=sys.stderr)
    job_messages.end_job("interrupted", EXIT_INTERRUPTED)
    return EXIT_INTERRUPTED


def _print_help(text: str) -> None:
    """Prints to a reader that may stop reading, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def _keep_programs_on_disk() -> None:
    """Lets JAX, before it is imported, keep compiled programs in ~/.cache/gkd/programs.

    XDG_CACHE_HOME moves ~/.cache; JAX_COMPILATION_CACHE_DIR names another folder or bucket, and
    JAX_ENABLE_COMPILATION_CACHE=false turns it off.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(cache, "gkd", "programs")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      arguments: the command line after `python -m gkd`; by default that of this process.

    Returns:
      The exit code, as listed in the help text.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's start-up messages
    platforms.skip_absent_tpus(os.environ)
    _keep_programs_on_disk()
    from gkd.configuration.gin_files import ConfigError

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with quick_interrupt():
            command = parse_arguments(arguments)
            if isinstance(command, str):
                _print_help(command)
                return EXIT_OK
            if processes.is_multiprocess(os.environ):
                processes.join(os.environ)
            run = configure(command)
    except UsageError as error:
        plain = [n for n in arguments[:1] if n in VERBS and (VERBS[n].plain or VERBS[n].about)]
        help_command = " ".join(["python -m gkd", *plain, "--help"])
        print(f"gkd: error: {one_line(error)} ({help_command})", file=sys.stderr)
        return EXIT_USAGE
    except ConfigError as error:
        return _fail(error, EXIT_USAGE)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        return _fail(error, EXIT_FAILED)
    try:
        run()
    except Stopped as stopped:
        print(f"gkd: stopped: {one_line(stopped)}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        return _fail(error, EXIT_FAILED)
    return EXIT_OK
