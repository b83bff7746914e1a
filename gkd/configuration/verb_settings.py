"""The settings of the verbs: every parameter and the values that it may have."""

from __future__ import annotations

import dataclasses

from gkd import step_names
from gkd.configuration import configurable_settings as configurables
from gkd.configuration.setting_values import (
    LARGEST_BATCH,
    LARGEST_SEED,
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

LENGTH = whole(1, LONGEST_SEQUENCE)
BATCH = whole(1, LARGEST_BATCH)
SEED = whole(0, LARGEST_SEED)
DTYPE = choice("float32", "bfloat16", none=True)
STEP = whole(0, words=step_names.NAMES, none=True)
PATH = text()
OPTIONAL_PATH = text(none=True)
MODEL = Setting(results=configurables.MODELS, none=True)
TASK = Setting(results=configurables.TASKS)
REWARD = Setting(
    functions=configurables.REWARD_FUNCTIONS, results=configurables.REWARD_RESULTS, none=True
)
DEVICES = whole(1, 1_000_000)  # along one axis of the mesh
SAMPLES = whole(1, LARGEST_BATCH)

TRAIN = {
    "model_dir": PATH,
    "task": TASK,
    "input_length": LENGTH,
    "target_length": LENGTH,
    "train_steps": whole(1),
    "batch_size": BATCH,
    "learning_rate": number(above=0),
    "student_model": MODEL,
    "student": OPTIONAL_PATH,
    "teacher": OPTIONAL_PATH,
    "teacher_model": MODEL,
    "divergence": Setting(functions=configurables.DIVERGENCES, none=True),
    "beta": number(0, 1, none=True),
    "on_policy_fraction": number(0, 1, results=configurables.SCHEDULES),
    "normalisation": choice("sequence", "token"),
    "temperature": number(above=0, items=number(above=0), lengths=(2, 2)),
    "samples": SAMPLES,
    "rollout_length": whole(1, LONGEST_SEQUENCE, none=True),
    "mixing": choice("batch", "example"),
    "sampling_temperature": number(above=0),
    "sampling_top_k": whole(0),
    "sampling_top_p": number(above=0, most=1),
    "reward": REWARD,
    "alpha": number(0, 1),
    "advantage": choice("batch", "group", "group_standardised", "none"),
    "reward_model": OPTIONAL_PATH,
    "reward_architecture": MODEL,
    "replay": Setting(results=configurables.REPLAYS, none=True),
    "teacher_top_k": OPTIONAL_PATH,
    "top_k_tail": choice("bucket", "renormalise"),
    "optimizer": Setting(functions=configurables.OPTIMIZERS),
    "warmup_steps": whole(0),
    "cooldown_steps": whole(0),
    "max_gradient_norm": number(above=0, none=True),
    "microbatches": whole(1, LARGEST_BATCH),
    "dropout_rate": number(0, below=1),
    "seed": SEED,
    "train_split": text(),
    "evaluation_split": text(),
    "evaluation_batch_size": whole(1, LARGEST_BATCH, none=True),
    "evaluation_examples": whole(1, none=True),
    "evaluate_every": whole(0),
    "log_every": whole(0),
    "checkpoint_every": whole(0),
    "keep_last": whole(1),
    "keep_best": whole(0),
    "best_metric": text(none=True),
    "best_mode": choice("max", "min"),
    "stop_after_skipped": whole(1),
    "sample_rows": whole(0),
    "model_parallelism": DEVICES,
    "fully_sharded": flag(),
    "student_dtype": DTYPE,
    "teacher_dtype": DTYPE,
    "student_stacked": flag(none=True),
    "teacher_stacked": flag(none=True),
    "remat": flag(none=True),
    "teacher_step": STEP,
    "tensorboard": flag(),
    "profile_steps": sequence(whole(1), 2, 2, none=True),
    "stall_seconds": number(0),
    "time_parts": flag(),
    "allow_changes": flag(),
    "dry_run": flag(),
    "devices": Setting(none=True),
}

EVALUATE = {
    "checkpoint": PATH,
    "task": TASK,
    "input_length": LENGTH,
    "target_length": LENGTH,
    "batch_size": BATCH,
    "evaluation_batch_size": whole(1, LARGEST_BATCH, none=True),
    "teacher": OPTIONAL_PATH,
    "step": STEP,
    "student_dtype": DTYPE,
    "teacher_dtype": DTYPE,
    "teacher_step": STEP,
    "reward": REWARD,
    "reward_model": OPTIONAL_PATH,
    "split": text(),
    "max_examples": whole(1, none=True),
    "temperatures": number(above=0, items=number(above=0), lengths=(0, 1000)),
    "samples": SAMPLES,
    "beams": whole(0, LARGEST_BATCH),
    "length_penalty": number(0, none=True),
    "seed": SEED,
    "sample_rows": whole(0),
    "output": OPTIONAL_PATH,
    "model_parallelism": DEVICES,
    "fully_sharded": flag(),
}

_WORDS = sequence(text())
_GRID = mapping(Setting(anything=True))  # the sweep's own errors name axis and option

SWEEP = {
    "directory": PATH,
    "gin_files": _WORDS,
    "axes": _GRID,
    "action": choice("run", "list", "status", "table"),
    "overrides": _WORDS,
    "evaluations": dataclasses.replace(_GRID, none=True),
    "prerequisites": dataclasses.replace(_GRID, none=True),
    "metrics": sequence(text(), none=True),
    "average_over": text(),
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
    "prefix": text(0),
    "vocabulary": OPTIONAL_PATH,
    "input_length": LENGTH,
    "max_length": LENGTH,
    "batch_size": BATCH,
    "temperature": number(0),
    "top_k": whole(0),
    "top_p": number(above=0, most=1),
    "samples": SAMPLES,
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
    "to": choice("gkd", "huggingface", "t5x", none=True),
    "step": STEP,
    "dtype": choice("float32", "bfloat16", "float16", none=True),
    "vocabulary": OPTIONAL_PATH,
}

PROGRAMS = ("step", "sft", "evaluation", "generation")  # that `plan` compiles

PLAN = {
    "topology": PATH,
    "mesh": text(none=True),
    "programs": text(),
    "expected_length": number(above=0, most=LONGEST_SEQUENCE, none=True),
    "price": number(0, none=True),
    "search": flag(),
    "output": OPTIONAL_PATH,
}

# What gin files may call or bind, by dotted name; nothing else of this package is configurable.
SETTINGS = {
    **configurables.SETTINGS,
    "gkd.train.train.train": TRAIN,
    "gkd.evaluate.evaluate.evaluate": EVALUATE,
    "gkd.sweep.sweep.sweep": SWEEP,
}
