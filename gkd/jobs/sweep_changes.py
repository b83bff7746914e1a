"""Whether a complete cell was made with the configuration that the sweep has now."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from gkd.jobs import buckets
from gkd.jobs.gin_files import GinReader, Macro, parse_statements

# What decides how and where a cell is made, not what comes out.
WITHOUT_EFFECT = {
    "model_dir", "checkpoint", "output", "log_every", "checkpoint_every", "keep_last", "keep_best",
    "sample_rows", "tensorboard", "profile_steps", "stall_seconds", "time_parts", "dry_run",
    "model_parallelism", "fully_sharded", "student_stacked", "teacher_stacked", "remat",
    "microbatches", "evaluation_batch_size", "stop_after_skipped",
}  # fmt: skip
_VERBS = ("train", "evaluate", "sweep")
_PACKAGES = ("jobs", "models", "distill", "data", "checkpoints")
_UNSET = object()


def settings_of(reader: GinReader) -> dict[str, tuple[Any, str]]:
    """Every parameter that a configuration sets: by its key, the value and the binding's target.

    Macros are replaced by their values.

    Args:
      reader: of a checked configuration.
    """
    bindings = {binding.key: binding.value for binding in reader.final_bindings()}
    targets = {binding.key: binding.target for binding in reader.final_bindings()}
    return {
        key: (_resolved(value, bindings), targets[key])
        for key, value in bindings.items()
        if "." in key.rpartition("/")[2]
    }


def of_bindings(
    recorded: Mapping[str, str] | None, settings: Mapping[str, Any], verb: str
) -> list[str]:
    """The differences of a recorded configuration and a cell's: `learning_rate 0.003 → 0.01`.

    Args:
      recorded: the bindings in the result or its launch, see `run_directory.config_bindings`; None
        where nothing is recorded, which is no difference.
      settings: from `settings_of`.
      verb: whose parameters count, beside those of tasks, models and the like.
    """
    if not recorded:
        return []
    bindings = {key: _parsed(text) for key, text in recorded.items()}
    before = {_short(k): _resolved(v, bindings) for k, v in bindings.items() if "." in k}
    recorded_as = {_short(key): key for key in bindings}
    after = {_short(key): value for key, (value, _) in settings.items()}
    targets = {_short(key): target for key, (_, target) in settings.items()}
    differences = []
    for key in sorted(before.keys() | after.keys()):
        module, name = key.rpartition("/")[2].split(".")[0], key.rpartition(".")[2]
        if name in WITHOUT_EFFECT or (module in _VERBS and module != verb):
            continue
        old = before[key] if key in before else _default(targets[key])
        new = after[key] if key in after else _default_of_recorded(recorded_as[key])
        if old is not _UNSET and new is not _UNSET and not _same(old, new):
            differences.append(f"{name} {old!r} → {new!r}")
    return differences


def of_arguments(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The differences of two calls of a verb with options of its own."""
    return [
        f"{name} {before[name]!r} → {after[name]!r}"
        for name in after
        if name in before and name not in WITHOUT_EFFECT and not _same(before[name], after[name])
    ]


def _same(old: Any, new: Any) -> bool:
    try:
        return old == new or old == buckets.local_in(new)  # a run records where the mount is
    except FileNotFoundError:
        return False


def _resolved(value: Any, bindings: Mapping[str, Any]) -> Any:
    if isinstance(value, Macro):
        return _resolved(bindings.get(value.name), bindings)
    if isinstance(value, dict):
        return {key: _resolved(item, bindings) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(item, bindings) for item in value)
    return value


def _parsed(text: str) -> Any:
    return parse_statements(f"x = {text}", "a recorded configuration")[0].value


def _short(key: str) -> str:
    """A key without the packages that an import may or may not spell out."""
    scope, slash, name = key.rpartition("/")
    return scope + slash + ".".join(name.split(".")[-3:])


def _default(target: str) -> Any:
    """What a parameter is that nothing sets; _UNSET where there is none of that name."""
    *path, name = target.rpartition("/")[2].split(".")
    for cut in range(len(path) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(path[:cut]))
            function = functools.reduce(getattr, path[cut:], module)
            default = inspect.signature(function).parameters[name].default
            return _UNSET if default is inspect.Parameter.empty else default
        except (ModuleNotFoundError, AttributeError, KeyError, ValueError, TypeError):
            continue
    return _UNSET


def _default_of_recorded(key: str) -> Any:
    """The same by a recorded name: gin leaves out the packages that an import has spelled out."""
    name = key.rpartition("/")[2]
    whole = [name] if name.count(".") > 2 else [f"gkd.{package}.{name}" for package in _PACKAGES]
    return next((found for found in map(_default, whole) if found is not _UNSET), _UNSET)
