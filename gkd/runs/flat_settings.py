"""Flattens a configuration's bindings: one value per setting of a verb, whatever object holds it.

Earlier versions bound every setting to the verb's function itself (`train.train.learning_rate`);
now objects hold them (`experiment.Optimisation.learning_rate`). Both give the same flat names.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from gkd.configuration import experiment
from gkd.configuration.gin_files import Macro, Reference, parse_statements

UNSET = object()  # of a parameter without a default
VERBS = ("train", "evaluate", "sweep")
_TEACHER = {"checkpoint": "teacher", "step": "teacher_step", "dtype": "teacher_dtype"}
# By verb, the fields of objects that it uses, by class, where the flat name is another.
_NAMES = {
    "train": {
        "Batches": {"size": "batch_size", "split": "train_split"},
        "Student": {
            "checkpoint": "student", "architecture": "student_model", "dtype": "student_dtype",
            "stacked": "student_stacked",
        },
        "Teacher": {
            **_TEACHER, "architecture": "teacher_model", "stacked": "teacher_stacked",
            "top_k_file": "teacher_top_k",
        },
        "Method": {"training_task": "task"},
        "Optimisation": {},
        "Schedule": {},
        "Evaluation": {
            "split": "evaluation_split", "batch_size": "evaluation_batch_size",
            "examples": "evaluation_examples", "temperatures": None, "samples": None,
            "beams": None, "length_penalty": None,
        },
        "Execution": {},
    },
    "evaluate": {
        "Batches": {"size": "batch_size", "split": None, "microbatches": None},
        "Teacher": {
            **_TEACHER, "architecture": None, "stacked": None, "top_k_file": None,
            "top_k_tail": None,
        },
        "Method": {
            field.name: None
            for field in dataclasses.fields(experiment.Method)
            if field.name not in ("reward", "reward_model")
        },
        "Evaluation": {"batch_size": "evaluation_batch_size", "examples": "max_examples"},
        "Execution": {},
    },
}  # fmt: skip
# Modules by the names that earlier versions gave them.
_EARLIER_MODULES = {"rewards": "reward_functions", "benchmarks": "evaluation_tasks"}
_PACKAGES = (
    "train", "evaluate", "sweep", "models", "distill", "data", "metrics", "vocabularies",
    "configuration",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FlatSetting:
    """A setting's value.

    Attributes:
      value: literals, with `Reference`s for functions; macros are replaced.
      shown: the name that a user sets: a macro's where one sets it.
    """

    value: Any
    shown: str


def parsed_bindings(recorded: Mapping[str, str]) -> dict[str, Any]:
    """Parses recorded bindings, see `run_directory.config_bindings`."""
    return {key: _parsed(text) for key, text in recorded.items()}


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    return parse_statements(f"x = {text}", "a recorded configuration")[0].value


def flattened(bindings: Mapping[str, Any], verb: str) -> dict[str, FlatSetting]:
    """Returns every setting that a configuration sets, of a verb and of tasks, models and the like.

    Args:
      bindings: parsed values by key: macros, and parameters with their modules and functions.
      verb: 'train', 'evaluate' or 'sweep': settings of the others are left out.

    Returns:
      By flat name (`learning_rate`), or a parameter's key (`t5.T5Config.emb_dim`) where no object
      of `experiment` holds it.
    """
    short = {short_key(key): value for key, value in bindings.items()}
    flat = {}
    for key, value in short.items():
        module = key.rpartition("/")[2].split(".")[0]
        if "." not in key.rpartition("/")[2] or module == "experiment":
            continue
        if module in VERBS and (module != verb or _is_object(value)):
            continue
        name = key.rpartition(".")[2] if module == verb else key
        flat[name] = _flat(value, bindings, key.rpartition(".")[2])
    if any(key.rpartition("/")[2].startswith("experiment.") for key in short):
        flat |= _of_objects(short, bindings, verb)
        if verb == "evaluate" and "dtype" in flat:
            flat["student_dtype"] = flat.pop("dtype")
    return flat


def _is_object(value) -> bool:
    return isinstance(value, Reference) and "experiment." in value.selector


def _of_objects(short, bindings, verb) -> dict[str, FlatSetting]:
    """The settings that objects of `experiment` hold."""
    flat = {}
    for kind, names in _NAMES.get(verb, {}).items():
        values = _of_method(short, bindings) if kind == "Method" else {}
        for field in dataclasses.fields(getattr(experiment, kind)):
            name = names.get(field.name, field.name)
            raw = short.get(f"experiment.{kind}.{field.name}", UNSET)
            if kind != "Method" and raw is not UNSET:
                values[field.name] = _flat(raw, bindings, name or field.name)
            if name is None or field.name not in values:
                continue
            if field.name != "training_task" or values[field.name].value is not None:
                flat[name] = values[field.name]
    return flat


def _of_method(short, bindings) -> dict[str, FlatSetting]:
    """The method's fields: its file's values, and the single values that macros change."""
    method = resolved(short.get("METHOD"), bindings)
    scope = f"{method.scope}/" if isinstance(method, Reference) and method.scope else ""
    values = {}
    for field in dataclasses.fields(experiment.Method):
        own = short.get(f"experiment.Method.{field.name}", field.default)
        own = short.get(f"{scope}experiment.Method.{field.name}", own)
        values[field.name] = _flat(own, bindings, field.name)
    changes = {
        name: _flat(short[key], bindings, name)
        for name in values
        if (key := f"experiment.MethodChanges.{name}") in short
    }
    if "divergence" in changes and changes["divergence"].value is not None:
        values["beta"] = FlatSetting(None, "BETA")
    for name, change in changes.items():
        value = values[name].value if change.value is None else change.value
        values[name] = FlatSetting(value, change.shown)
    return values


def _flat(raw: Any, bindings: Mapping[str, Any], name: str) -> FlatSetting:
    value = raw
    while isinstance(value, Macro) and value.name in bindings:
        name, value = value.name, bindings[value.name]
    return FlatSetting(_with_short_references(resolved(raw, bindings)), name)


def resolved(value: Any, bindings: Mapping[str, Any]) -> Any:
    """Returns the value with macros replaced by theirs, through macros that name others."""
    if isinstance(value, Macro):
        return resolved(bindings.get(value.name), bindings)
    if isinstance(value, dict):
        return {key: resolved(item, bindings) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolved(item, bindings) for item in value)
    return value


def _with_short_references(value: Any) -> Any:
    """The value, its references without the packages that an import may or may not spell out."""
    if isinstance(value, Reference):
        return dataclasses.replace(value, selector=_present(value.selector.split(".")[-2:]))
    if isinstance(value, dict):
        return {key: _with_short_references(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_with_short_references, value))
    return value


def _present(words: list[str]) -> str:
    """A dotted name with its module's present name."""
    return ".".join([_EARLIER_MODULES.get(words[0], words[0]), *words[1:]])


def short_key(key: str) -> str:
    """Returns a key without the packages that an import may or may not spell out."""
    scope, slash, name = key.rpartition("/")
    return scope + slash + _present(name.split(".")[-3:])


def default_of(name: str, verb: str) -> Any:
    """Returns the value of a setting that nothing sets; UNSET where there is none of that name.

    Args:
      name: a flat name or a parameter's key, see `flattened`.
      verb: verb in the flat name.
    """
    for kind, names in _NAMES.get(verb, {}).items():
        for field in dataclasses.fields(getattr(experiment, kind)):
            if names.get(field.name, field.name) == name:
                return UNSET if field.default is dataclasses.MISSING else field.default
    *path, parameter = name.rpartition("/")[2].split(".")
    if not path:
        path, parameter = [verb, verb], name
    for package in _PACKAGES:
        try:
            module = importlib.import_module(f"gkd.{package}.{path[0]}")
            function = functools.reduce(getattr, path[1:], module)
            default = inspect.signature(function).parameters[parameter].default
            return UNSET if default is inspect.Parameter.empty else default
        except (ModuleNotFoundError, AttributeError, KeyError, ValueError, TypeError):
            continue
    return UNSET
