"""LENGTH_BUCKETS as a run's method, models and mesh allow it."""

from __future__ import annotations

from typing import Any

from gkd.configuration.experiment import Experiment
from gkd.data.length_buckets import SHORT
from gkd.data.part_lengths import PartSizes, parts_of
from gkd.train.method import student_generates
from gkd.train.model_flops import rows_are_spread
from gkd.train.step_program import StepProgram

PARTS = "parts"


def batch_buckets(experiment: Experiment) -> tuple[Any, bool]:
    """Returns LENGTH_BUCKETS as training follows it, and whether targets are grouped too.

    A memory (REPLAY) holds rows of one length, and a student may write more tokens than a target
    has.
    """
    method = experiment.method
    buckets = None if method.replay is not None else experiment.batches.length_buckets
    return buckets, not student_generates(method)


def part_sizes(program: StepProgram) -> PartSizes:
    """Returns the parts that a run's batches can be laid out in; one where they save nothing.

    The rows of a part are divided as all rows are: over the data axis, microbatches, and the model
    axis where attention is split by rows.
    """
    rows, shards = program.experiment.batches.size, program.mesh.shape["data"]
    microbatches = program.experiment.batches.microbatches
    models = [one for one in (program.student, program.teacher) if one is not None]
    if any(rows_are_spread(program, one.config, rows // microbatches) for one in models):
        shards *= program.mesh.shape["model"]
    encodes_parts = any(one.model.encode_parts is not None for one in models)
    prompts = [program.batch.encoder_input_tokens]
    prompts += [] if program.teacher is None else [program.batch.teacher_prompts]
    is_short = max(tokens.shape[1] for tokens in prompts) <= SHORT
    usable = encodes_parts and not is_short and batch_buckets(program.experiment)[0] == PARTS
    return PartSizes(parts_of(rows, shards * microbatches) if usable else 1, shards)


def saves_padding(program: StepProgram) -> bool:
    """Returns whether batches of shorter rows may take less time than the longest."""
    buckets, _ = batch_buckets(program.experiment)
    return part_sizes(program).parts > 1 if buckets == PARTS else buckets is not None
