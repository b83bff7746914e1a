"""The configurations that the repository ships, each as a command: run files, and sweeps' cells."""

from __future__ import annotations

import functools
import itertools
from unittest import mock

import gin

from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.configuration.gin_files import GinReader, Reference
from gkd.runs.setting_changes import settings_of
from gkd.sweep import sweep
from tests.paths import REPOSITORY

PAPER = ("xsum", "wmt14_en_de", "gsm8k", "flan")  # folders of configs/runs
# Methods whose teacher is the student, with a prompt that the paper's tasks do not have.
PRIVILEGED = {"opsd", "sdft", "opsdl"}
# Methods of rewards alone: where no sample is right, as in a first step here, nothing moves.
REWARDED = {"grpo", "oisd", "ssopd"}
# What differs between runs of one and the same program.
_NO_PROGRAM = {
    "MODEL_DIR", "STUDENT", "TEACHER", "REWARD_MODEL", "TEACHER_OUTPUTS", "OUTPUTS_PREFIX", "SEED",
    "MAX_EXAMPLES", "TRAIN_STEPS", "LEARNING_RATE", "WARMUP_STEPS", "COOLDOWN_STEPS", "TRAIN_TASK",
    "CHECKPOINT_EVERY", "CHECKPOINT_STEP", "LOG_EVERY", "BEST_METRIC",
}  # fmt: skip


def names(folder: str, *without: str) -> list[str]:
    """The gin files below a folder of configs/, from the repository's root."""
    paths = sorted((REPOSITORY / "configs" / folder).rglob("*.gin"))
    return [str(path.relative_to(REPOSITORY)) for path in paths if path.stem not in without]


def paper_runs() -> list[str]:
    """The run files of the paper's grid."""
    return [name for task in PAPER for name in names(f"runs/{task}", "common")]


def axes(name: str) -> dict[str, dict[str, list[str]]]:
    """The axes of a sweep file."""
    found = {}
    with (
        mock.patch.object(sweep, "plan", lambda _, files, axes, *__: found.update(axes) or []),
        mock.patch.object(sweep, "Runner"),
    ):
        command_line.configure(Command("sweep", (name,), ()))()
    gin.clear_config()
    return found


@functools.cache
def cells(name: str) -> tuple[sweep.Cell, ...]:
    """The cells of a sweep file, checked; of the first seed only, to save time.

    What they share is in their `needs`.
    """
    plan, found = sweep.plan, []

    def first_seed(directory, gin_files, axes, *others):
        seed = dict(itertools.islice(axes["seed"].items(), 1))
        return plan(directory, gin_files, {**axes, "seed": seed}, *others)

    with (
        mock.patch.object(sweep, "plan", first_seed),
        mock.patch.object(sweep, "Runner", lambda cells, *_: found.extend(cells) or mock.Mock()),
    ):
        command_line.configure(Command("sweep", (name,), ()))()
    gin.clear_config()
    return tuple(cell for cell in found if not cell.is_prerequisite)


def command_of(cell: sweep.Cell) -> Command:
    """A cell's command, parsed again from its arguments."""
    return command_line.parse_arguments(cell.arguments)


# The macros that change single values of a method, by the method's fields.
METHOD_MACROS = {
    "LAMBDA": "on_policy_fraction", "DIVERGENCE": "divergence", "BETA": "beta", "ALPHA": "alpha",
    "REWARD": "reward", "REPLAY": "replay", "NORMALISATION": "normalisation",
    "TEMPERATURE": "temperature", "MIXING": "mixing", "SAMPLES": "samples",
    "ROLLOUT_LENGTH": "rollout_length", "SAMPLING_TEMPERATURE": "sampling_temperature",
    "SAMPLING_TOP_K": "sampling_top_k", "SAMPLING_TOP_P": "sampling_top_p",
    "ADVANTAGE": "advantage", "AUXILIARY_LOSS": "auxiliary",
    "POLICY_LOSS": "policy_loss", "RATIO_CLIP": "ratio_clip",
    "UPDATES_PER_ROLLOUT": "updates_per_rollout",
}  # fmt: skip


def values(reader: GinReader) -> dict[str, object]:
    """All macros that hold, those of the method with the value that they or its file give."""
    macros = {b.macro: b.value for b in reader.final_bindings() if b.macro}
    flat = settings_of(reader, "train")
    chosen = {macro: flat[field].value for macro, field in METHOD_MACROS.items()}
    macros.pop("METHOD")
    return {**macros, **chosen, "TRAIN_TASK": flat["task"].value}


def program(reader: GinReader) -> dict[str, str]:
    """The macros that choose the program, as text; numbers that only weigh are all alike."""
    macros = values(reader)
    for name in ("LAMBDA", "ALPHA"):
        if isinstance(macros.get(name), float) and 0 < macros[name] < 1:
            macros[name] = "a share"
    macros["BETA"] = macros["BETA"] is not None
    if macros["ALPHA"] == 0:  # a reward alone
        macros["DIVERGENCE"] = macros["BETA"] = macros["TEACHER_MODEL"] = "not used"
    if isinstance(macros["REWARD"], Reference) and not macros["REWARD"].evaluate:
        macros["REWARD"] = "of texts"
    return {
        name: repr(value)
        for name, value in macros.items()
        if name not in _NO_PROGRAM and not name.startswith("EVALUAT")
    }
