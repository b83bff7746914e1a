"""Tasks by the name of their gin file, for verbs with options of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gin

from gkd.configuration import buckets, gin_check, gin_settings
from gkd.configuration.gin_files import ConfigError, GinReader, parse_statements, resolve_gin_file
from gkd.data.tasks import TaskSpec
from gkd.errors import one_line

# Beside the task, a task file sets these for the jobs that include it.
_ALSO_SET = ("INPUT_LENGTH", "TARGET_LENGTH", "BEST_METRIC")
_IMPORTS = "from __gin__ import dynamic_registration\nfrom gkd.configuration import task_files\n"


def chosen(task: TaskSpec, **others: Any) -> TaskSpec:
    """What gin calls with the macros of a task file; their values are of no interest but TASK's."""
    del others
    return task


def read_task(file: str, overrides: Sequence[str] = (), allowed: Sequence[str] = ()) -> TaskSpec:
    """The task that a gin file defines as TASK.

    Gin's state is global: this clears what an earlier call set.

    Args:
      file: e.g. configs/tasks/xsum.gin, looked for here and in the repository; a run file will do.
      overrides: NAME=VALUE, as `--gin.NAME=VALUE` of the verbs with gin files.
      allowed: modules that the file may import besides gkd's own.

    Raises:
      ConfigError: anything wrong with the configuration, in one line with its place.
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
