"""The differences of two configurations that change a result: a sweep cell's, a run's launches'."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from gkd.checkpoints.hashes import digest_of
from gkd.configuration import buckets
from gkd.configuration.gin_files import GinReader
from gkd.runs.flat_settings import UNSET, FlatSetting, default_of, flattened, parsed_bindings
from gkd.step_names import BEST, BEST_OR_NEWEST

# Settings that decide how and where a result is computed, not its value.
WITHOUT_EFFECT = {
    "model_dir", "output", "log_every", "checkpoint_every", "keep_last", "keep_best",
    "sample_rows", "tensorboard", "tracker", "profile_steps", "stall_seconds", "time_parts",
    "dry_run", "model_parallelism", "fully_sharded", "student_stacked", "teacher_stacked", "remat",
    "microbatches", "evaluation_batch_size", "stop_after_skipped", "allow_changes",
}  # fmt: skip
# Settings that may also change while a run continues: its length, intervals and kept best.
OF_A_LAUNCH = WITHOUT_EFFECT | {
    "train_steps", "evaluate_every", "best_metric", "best_mode", "stacked_layers",
}  # fmt: skip
# Parameters that earlier versions lacked, with the values that they behaved as. Those versions also
# lacked the macro ALLOW_CHANGES.
_EARLIER_VALUES = {"escapes": True}
# Values of a setting that give the same results up to rounding.
_SAME_RESULTS = {"length_buckets": (None, "parts")}
# The share of a replay follows the step's number among all, and evaluations of so many rows.
_OF_A_REPLAY = {"train_steps", "evaluate_every", "evaluation_batch_size"}
_MEASURED = "checkpoint"  # of `evaluate`: the model that is measured
_CHECKPOINTS = {"student", "teacher", "reward_model", "teacher_top_k"}  # paths of any spelling


def settings_of(reader: GinReader, verb: str) -> dict[str, FlatSetting]:
    """Returns the settings of a checked configuration, by flat name.

    Args:
      reader: holds all bindings.
      verb: the verb that they configure.
    """
    return flattened({binding.key: binding.value for binding in reader.final_bindings()}, verb)


def of_bindings(
    recorded: Mapping[str, str] | None, settings: Mapping[str, FlatSetting], verb: str
) -> list[str]:
    """Lists the differences of a recorded configuration and a cell's: `learning_rate 0.003 → 0.01`.

    Args:
      recorded: the bindings in the result or its launch, see `run_directory.config_bindings`; None
        where nothing is recorded, which is no difference.
      settings: settings of the cell, see `settings_of`.
      verb: verb whose settings are compared, beside those of tasks, models and the like.
    """
    if not recorded:
        return []
    before = flattened(parsed_bindings(recorded), verb)
    differences = []
    for key in sorted(before.keys() | settings.keys()):
        name = key.rpartition(".")[2]
        if name in WITHOUT_EFFECT:
            continue
        old = before[key].value if key in before else _default_then(key, verb, recorded)
        new = settings[key].value if key in settings else default_of(key, verb)
        if name == "step" and (old, new) == (BEST, BEST_OR_NEWEST):
            continue  # the default of earlier versions: what it measured had a best step
        if key == _MEASURED and verb == "evaluate" and _is_own(before.get(key), settings.get(key)):
            continue
        if old is not UNSET and new is not UNSET and not _same(old, new, name):
            differences.append(f"{name} {old!r} → {new!r}")
    return sorted(differences)


def _is_own(*settings: FlatSetting | None) -> bool:
    """True where each of the settings is the run's own directory, wherever it is."""
    return all(setting is not None and setting.shown == "MODEL_DIR" for setting in settings)


def of_checkpoints(recorded: Mapping[str, tuple[str, str | None]]) -> list[str]:
    """Lists the checkpoints whose content has changed: `TEACHER runs/t/checkpoints/2 has …`.

    Args:
      recorded: by role, the name of a checkpoint that was read and its digest then, see
        `hashes.digest_of`. One without a digest, and one that is not there now, has not changed.
    """
    now = {role: digest_of(name) for role, (name, _) in recorded.items()}
    return [
        f"{role} {name} has been trained again"
        for role, (name, digest) in recorded.items()
        if None not in (digest, now[role]) and digest != now[role]
    ]


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
    settings = [flattened(parsed_bindings(bindings), "train") for bindings in (before, after)]
    free = OF_A_LAUNCH
    if any("replay" in flat and flat["replay"].value is not None for flat in settings):
        free = OF_A_LAUNCH - _OF_A_REPLAY
    differences = []
    for key in sorted(settings[0].keys() | settings[1].keys()):
        name = key.rpartition(".")[2]
        if name in free:
            continue
        old, new = (
            flat[key].value if key in flat else _default_then(key, "train", recorded)
            for flat, recorded in zip(settings, (before, after), strict=True)
        )
        if old is UNSET or new is UNSET or _same(old, new, name):
            continue
        if name in _CHECKPOINTS and _same_path(old, new):
            continue
        shown = next(flat[key].shown for flat in reversed(settings) if key in flat)
        differences.append(f"{shown} {old!r} → {new!r}")
    return sorted(set(differences))


def _default_then(key: str, verb: str, recorded: Mapping[str, str]) -> Any:
    """The value of a setting that a recorded configuration leaves open, in the version it is of."""
    name = key.rpartition(".")[2]
    if name in _EARLIER_VALUES and not any("allow_changes" in other for other in recorded):
        return _EARLIER_VALUES[name]
    return default_of(key, verb)


def _same_path(old: Any, new: Any) -> bool:
    if not (isinstance(old, str) and isinstance(new, str)):
        return False
    return pathlib.Path(old).resolve() == pathlib.Path(new).resolve()


def of_arguments(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lists the differences of two calls of a verb with options of its own."""
    return [
        f"{name} {before[name]!r} → {after[name]!r}"
        for name in after
        if name in before and name not in WITHOUT_EFFECT and not _same(before[name], after[name])
    ]


def _same(old: Any, new: Any, name: str = "") -> bool:
    alike = _SAME_RESULTS.get(name, ())
    if old in alike and new in alike:
        return True
    try:
        return old == new or old == buckets.local_in(new)  # a run records where the mount is
    except FileNotFoundError:
        return False
