"""The settings of the verbs: every parameter and the values that it may have."""

from __future__ import annotations

import dataclasses

from gkd.configuration import configurable_settings as configurables
from gkd.configuration import experiment
from gkd.configuration.experiment import (
    BATCH,
    DEVICES,
    DTYPE,
    LENGTH,
    OPTIONAL_PATH,
    SEED,
    STEP,
    TASK,
)
from gkd.configuration.setting_values import (
    LARGEST_BATCH,
    LONGEST_SEQUENCE,
    Setting,
    choice,
    flag,
    mapping,
    number,
    sequence,
    text,
    whole,
)

PATH = text()


def _object(*names: str) -> Setting:
    return Setting(results=tuple(f"gkd.configuration.experiment.{name}" for name in names))


METHOD = _object("changed", "Method")

TRAIN = {
    "model_dir": PATH,
    "task": TASK,
    "batches": _object("Batches"),
    "student": _object("Student"),
    "schedule": _object("Schedule"),
    "teacher": _object("Teacher"),
    "method": METHOD,
    "optimisation": _object("Optimisation"),
    "evaluation": _object("Evaluation"),
    "execution": _object("Execution"),
    "seed": SEED,
    "dry_run": flag(),
}

EVALUATE = {
    "checkpoint": PATH,
    "task": TASK,
    "batches": _object("Batches"),
    "teacher": _object("Teacher"),
    "method": METHOD,
    "evaluation": _object("Evaluation"),
    "execution": _object("Execution"),
    "step": STEP,
    "dtype": DTYPE,
    "seed": SEED,
    "output": OPTIONAL_PATH,
}

_WORDS = sequence(text())
_GRID = mapping(Setting(anything=True))  # the sweep's own errors name axis and option

SWEEP = {
    "directory": PATH,
    "gin_files": _WORDS,
    "axes": _GRID,
    "action": choice("run", "list", "status", "table", "verdict"),
    "overrides": _WORDS,
    "evaluations": dataclasses.replace(_GRID, none=True),
    "prerequisites": dataclasses.replace(_GRID, none=True),
    "results": Setting(results=("gkd.sweep.sweep.Results",)),
    "max_parallel": whole(1, 10_000),
    "retries": whole(0),
    # They choose which programs run: a file that somebody else wrote must not.
    "launcher": sequence(text(), from_files=False),
    "allow_module": sequence(text(), from_files=False),
}

INFER = {
    "model": PATH,
    "output": PATH,
    "input": OPTIONAL_PATH,
    "task": OPTIONAL_PATH,
    "split": text(none=True),
    "gin": sequence(text(), none=True),
    "step": STEP,
    "input_field": text(none=True),
    "target_field": text(none=True),
    "delimiter": text(none=True),
    "quoting": choice("csv", "text", none=True),
    "prefix": text(0),
    "vocabulary": OPTIONAL_PATH,
    "input_length": LENGTH,
    "max_length": LENGTH,
    "batch_size": BATCH,
    "temperature": number(0),
    "top_k": whole(0),
    "top_p": number(above=0, most=1),
    "samples": BATCH,
    "beams": whole(0, LARGEST_BATCH),
    "length_penalty": number(0, none=True),
    "seed": SEED,
    "dtype": DTYPE,
    "score": flag(),
    "top_k_log_probs": whole(1, none=True),
    "model_parallelism": DEVICES,
    "allow_module": sequence(text(), none=True),
}

CONVERT = {
    "source": PATH,
    "target": PATH,
    "to": choice("gkd", "huggingface", "t5x", "t5x_orbax", "peft", none=True),
    "step": STEP,
    "dtype": choice("float32", "bfloat16", "float16", none=True),
    "vocabulary": OPTIONAL_PATH,
    "keep_encoder_layers": text(none=True),
    "keep_decoder_layers": text(none=True),
}

NEW = {
    "directory": PATH,
    "train": OPTIONAL_PATH,
    "validation": OPTIONAL_PATH,
    "input_field": text(none=True),
    "target_field": text(none=True),
    "teacher": OPTIONAL_PATH,
    "student": OPTIONAL_PATH,
    "prefix": text(0),
    "metric": choice("rouge2", "bleu", "exact_match"),
    "steps": whole(1),
    "delimiter": text(none=True),
    "tuned_teacher": flag(),
}

REPORT = {
    "directories": sequence(PATH),
    "output": OPTIONAL_PATH,
    "metric": sequence(text(), none=True),
    "baseline": text(none=True),
    "examples": whole(0, 10_000),
}

PROGRAMS = ("step", "sft", "evaluation", "generation")  # that `plan` compiles

PLAN = {
    "topology": PATH,
    "mesh": text(none=True),
    "programs": text(),
    "expected_length": number(above=0, most=LONGEST_SEQUENCE, none=True),
    "price": number(0, none=True),
    "lengths": text(none=True),
    "search": flag(),
    "measured": OPTIONAL_PATH,
    "output": OPTIONAL_PATH,
}

# What gin files may call or bind, by dotted name; nothing else of this package is configurable.
SETTINGS = {
    **configurables.SETTINGS,
    **{
        f"gkd.configuration.experiment.{kind.__name__}": experiment.table(kind)
        for kind in (*experiment.OBJECTS, experiment.MethodChanges)
    },
    "gkd.configuration.experiment.changed": {
        "method": METHOD,
        "changes": _object("MethodChanges"),
    },
    "gkd.train.train.train": TRAIN,
    "gkd.evaluate.evaluate.evaluate": EVALUATE,
    "gkd.sweep.sweep.sweep": SWEEP,
    "gkd.sweep.sweep.Results": {
        "metrics": sequence(text(), none=True),
        "average_over": text(),
        "baseline": mapping(text(), none=True),
        "claim": text(none=True),
        "comparisons": dataclasses.replace(_GRID, none=True),
        "at_least": whole(1, none=True),
    },
}
