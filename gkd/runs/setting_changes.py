"""The differences of two configurations that change a result: a sweep cell's, a run's launches'."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pathlib
from collections.abc import Mapping
from typing import Any

from gkd.configuration import buckets
from gkd.configuration.gin_files import GinReader, Macro, Reference, parse_statements
from gkd.step_names import BEST, BEST_OR_NEWEST

# Settings that decide how and where a result is computed, not its value.
WITHOUT_EFFECT = {
    "model_dir", "checkpoint", "output", "log_every", "checkpoint_every", "keep_last", "keep_best",
    "sample_rows", "tensorboard", "profile_steps", "stall_seconds", "time_parts", "dry_run",
    "model_parallelism", "fully_sharded", "student_stacked", "teacher_stacked", "remat",
    "microbatches", "evaluation_batch_size", "stop_after_skipped", "allow_changes",
}  # fmt: skip
# Settings that may also change while a run continues: its length, intervals and kept best.
OF_A_LAUNCH = WITHOUT_EFFECT | {
    "train_steps", "evaluate_every", "best_metric", "best_mode", "stacked_layers",
}  # fmt: skip
# Parameters that earlier versions lacked, with the values that they behaved as. Those versions also
# lacked `allow_changes`, which configs/train.gin binds.
_EARLIER_VALUES = {"escapes": True}
_CHECKPOINTS = {"student", "teacher", "reward_model", "teacher_top_k"}  # paths of any spelling
_VERBS = ("train", "evaluate", "sweep")
_PACKAGES = (
    "train", "evaluate", "sweep", "models", "distill", "data", "metrics", "vocabularies",
    "checkpoints",
)  # fmt: skip
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
        old = before[key] if key in before else _default(targets[key], bindings)
        new = after[key] if key in after else _default_of_recorded(recorded_as[key])
        if name == "step" and (old, new) == (BEST, BEST_OR_NEWEST):
            continue  # the default of earlier versions: what it measured had a best step
        if old is not _UNSET and new is not _UNSET and not _same(old, new):
            differences.append(f"{name} {old!r} → {new!r}")
    return differences


def of_launches(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Lists the differences that make a run's steps incomparable: `LAMBDA 1.0 → 0.0`.

    Args:
      before, after: the bindings of two launches of `train`, see `run_directory.config_bindings`;
        empty where `train` was called without gin files, which is no difference.

    Returns:
      One text per difference in the method, the data or the optimisation, by the macro's name where
      a macro sets it; none for execution settings, intervals and `train_steps`.
    """
    if not before or not after:
        return []
    parsed = [
        {key: _parsed(text) for key, text in bindings.items()} for bindings in (before, after)
    ]
    free = OF_A_LAUNCH
    if any(_resolved(bindings.get("REPLAY"), bindings) is not None for bindings in parsed):
        free = OF_A_LAUNCH - {"evaluate_every"}  # the replay's share follows the evaluations
    settings = [
        {
            _short(key): (key, value)
            for key, value in bindings.items()
            if "." in key.rpartition("/")[2]
        }
        for bindings in parsed
    ]
    differences = []
    for short in sorted(settings[0].keys() | settings[1].keys()):
        name, module = short.rpartition(".")[2], short.rpartition("/")[2].split(".")[0]
        if name in free or (module in _VERBS and module != "train"):
            continue
        key = next(own[short][0] for own in settings if short in own)
        raw = [
            own[short][1] if short in own else _default_of_recorded(key, bindings)
            for own, bindings in zip(settings, parsed, strict=True)
        ]
        old, new = (
            _with_short_references(_resolved(value, bindings))
            for value, bindings in zip(raw, parsed, strict=True)
        )
        if old is _UNSET or new is _UNSET or _same(old, new):
            continue
        if name in _CHECKPOINTS and _same_path(old, new):
            continue
        shown = name  # or the macro that a user sets
        for value, bindings in zip(raw, parsed, strict=True):
            while isinstance(value, Macro):
                shown, value = value.name, bindings.get(value.name)
        differences.append(f"{shown} {old!r} → {new!r}")
    return sorted(set(differences))


def _with_short_references(value: Any) -> Any:
    """The value, its references without the packages that an import may or may not spell out."""
    if isinstance(value, Reference):
        return dataclasses.replace(value, selector=".".join(value.selector.split(".")[-2:]))
    if isinstance(value, dict):
        return {key: _with_short_references(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_with_short_references, value))
    return value


def _same_path(old: Any, new: Any) -> bool:
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    return pathlib.Path(old).resolve() == pathlib.Path(new).resolve()


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


def _default(target: str, recorded: Mapping[str, Any] | None = None) -> Any:
    """Returns a parameter's value where nothing sets it; _UNSET where there is none of that name.

    Args:
      target: the parameter, with its module and function.
      recorded: the bindings of the configuration that does not set it; None is the present one.
    """
    *path, name = target.rpartition("/")[2].split(".")
    if recorded and name in _EARLIER_VALUES and "train.train.allow_changes" not in recorded:
        return _EARLIER_VALUES[name]
    for cut in range(len(path) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(path[:cut]))
            function = functools.reduce(getattr, path[cut:], module)
            default = inspect.signature(function).parameters[name].default
            return _UNSET if default is inspect.Parameter.empty else default
        except (ModuleNotFoundError, AttributeError, KeyError, ValueError, TypeError):
            continue
    return _UNSET


def _default_of_recorded(key: str, recorded: Mapping[str, Any] | None = None) -> Any:
    """The same by a recorded name: gin leaves out the packages that an import has spelled out."""
    name = key.rpartition("/")[2]
    whole = [name] if name.count(".") > 2 else [f"gkd.{package}.{name}" for package in _PACKAGES]
    return next(
        (found for found in (_default(name, recorded) for name in whole) if found is not _UNSET),
        _UNSET,
    )
