"""Reads a task from its gin file, for verbs with options of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gin

from gkd.configuration import buckets, gin_check, gin_settings
from gkd.configuration.gin_files import ConfigError, GinReader, parse_statements, resolve_gin_file
from gkd.data.tasks import TaskSpec
from gkd.errors import one_line

# Further macros that a task file binds for the runs that include it.
_ALSO_SET = ("INPUT_LENGTH", "TARGET_LENGTH", "BEST_METRIC")
_IMPORTS = "from __gin__ import dynamic_registration\nfrom gkd.configuration import task_files\n"


def chosen(task: TaskSpec, **others: Any) -> TaskSpec:
    """Returns its task; gin calls it with the macros of a task file, so that all are used.

    Args:
      task: value of TASK.
      **others: values of the other macros, which are ignored.
    """
    del others
    return task


def read_task(file: str, overrides: Sequence[str] = (), allowed: Sequence[str] = ()) -> TaskSpec:
    """Reads the task that a gin file defines as TASK.

    Gin's state is global: bindings of an earlier call are cleared.

    Args:
      file: path of a task or run file, e.g. configs/tasks/xsum.gin, in the current directory or the
        repository.
      overrides: overrides NAME=VALUE, as in `--gin.NAME=VALUE`.
      allowed: modules that the file may import besides gkd's own.

    Returns:
      The task.

    Raises:
      ConfigError: the configuration is wrong; the text is one line with its place.
    """
    reader = GinReader()
    try:
        path = resolve_gin_file(file)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--gin_file=", "--task=", 1)) from None
    reader.read_file(path)
    if "TASK" not in (binding.macro for binding in reader.bindings):
        raise ConfigError(f"--task={file} defines no TASK: name a file of configs/tasks/")
    known = gin_check.override_imports(overrides, reader)
    for override in overrides:
        reader.read_override(override, known)
    imports = parse_statements(_IMPORTS, "imports")
    uses = {"task": "TASK", **{name.lower(): name for name in _ALSO_SET}}
    for argument, macro in uses.items():
        if macro in (binding.macro for binding in reader.bindings):
            reader.read_override(f"task_files.chosen.{argument}=%{macro}", imports)
    gin_settings.check(reader, (chosen.__module__, *allowed))
    gin_check.check(reader, chosen, "task_files.chosen")
    reader.replace_values(buckets.local_in)
    gin.clear_config()
    try:
        for text in reader.gin_texts():
            gin.parse_config(text)
        gin.finalize()
    except (ValueError, SyntaxError) as error:  # what the check did not foresee
        raise ConfigError(one_line(error)) from error
    return gin.get_configurable(chosen)()
