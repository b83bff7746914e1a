"""The records of `plan`: what every program and the whole run take, as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.distill.train_step import Part
from gkd.errors import InvalidValue
from gkd.plan.batch_lengths import BatchLengths
from gkd.plan.memory import advice
from gkd.plan.programs import Measured, Planned, measure, parts
from gkd.program_cost.roofline import Chip, roofline
from gkd.train.model_flops import rows_are_spread, shard_counts_of
from gkd.train.step_program import StepProgram

TOLERANCE = 0.03
_HOUR = 3600.0
_SUMS = (
    "flops", "closed_form_flops", "bytes", "wire_bytes", "collectives", "dcn_bytes",
    "dcn_collectives", "dcn_seconds", "seconds", "seconds_without_overlap", "seconds_by_part",
    "useful_flops", "compile_seconds",
)  # fmt: skip


def completion_length(program: StepProgram, expected: float | int | None) -> float | int:
    """Returns the tokens per completion to count with.

    Args:
      program: the run's step program.
      expected: mean tokens per completion; None is the greatest length.

    Raises:
      ValueError: completions cannot be as long as expected.
    """
    longest = program.experiment.batches.target_length
    length = longest if expected is None else expected
    if not 0 < length <= longest:
        raise InvalidValue(f"--expected_length is {length}: completions have at most {longest}")
    return length


def measured(
    program: StepProgram,
    planned: Planned,
    chip: Chip,
    length: float | int,
    prices: Mapping[str, Any],
) -> dict[str, Any]:
    """Compiles a program, and reports its cost as `facts` does.

    Args:
      program, planned, chip, prices: as in `facts`.
      length: mean tokens per completion, see `completion_length`.

    Returns:
      The record of `facts`.
    """
    length = min(length, planned.bound)
    compiled = measure(planned.lower, chip, length / planned.bound)
    return facts(program, planned, compiled, chip, length, prices)


def facts(
    program: StepProgram,
    planned: Planned,
    measured: Measured,
    chip: Chip,
    expected_length: float | int,
    prices: Mapping[str, Any],
) -> dict[str, Any]:
    """Builds the JSON record of a measured program.

    Args:
      program: the run's step program.
      planned, measured: one of the run's programs, before and after compilation.
      chip: the chip that it was compiled for.
      expected_length: mean tokens per completion.
      prices: 'price' of a chip-hour or None, and the number of 'chips'.

    Returns:
      The memory, always. Counts and times only if the counted FLOPs equal the closed form; else
      `refused` states the difference.
    """
    held = planned.held
    estimate: dict[str, Any] = {
        "fits": False, "resident_bytes": dict(held), "cache_bytes": planned.cache,
        "capacity_bytes": chip.memory, "peak_bytes": measured.needed, "seconds": None,
        "compile_seconds": measured.compile_seconds,
    }  # fmt: skip
    if measured.cost is not None:
        # Resident arrays that are no arguments of the program occupy memory all the same.
        beside = max(0.0, sum(held.values()) - measured.memory.arguments)
        estimate["peak_bytes"] = measured.memory.peak + beside
        estimate["fits"] = estimate["peak_bytes"] <= chip.memory
        estimate["compiler"] = dataclasses.asdict(measured.memory)
    estimate["temporary_bytes"] = max(0.0, estimate["peak_bytes"] - sum(held.values()))
    if not estimate["fits"]:
        estimate["advice"] = advice(program, held, estimate["peak_bytes"], chip, planned.batch)
    if measured.cost is None:
        return estimate
    closed_form = planned.flops(expected_length)
    refusal = _refusal(measured, closed_form)
    if refusal:
        return estimate | {"refused": refusal}
    cost, seconds = measured.cost, dict(measured.seconds)
    no_overlap = roofline(cost, chip).no_overlap
    if planned.sampled < 1:
        seconds[Part.SAMPLING] *= planned.sampled
        sampling = roofline(parts(cost)[Part.SAMPLING], chip).no_overlap
        no_overlap -= (1 - planned.sampled) * sampling
    estimate |= {
        "flops": cost.flops, "closed_form_flops": closed_form, "bytes": cost.bytes,
        "wire_bytes": cost.wire_bytes, "collectives": cost.by_kind(),
        "dcn_bytes": cost.dcn_bytes, "dcn_collectives": cost.by_kind(between_slices=True),
        "dcn_seconds": chip.dcn and roofline(cost, chip).dcn,
        "seconds": sum(seconds.values()), "seconds_without_overlap": no_overlap,
    }  # fmt: skip
    if planned.useful is not None:
        estimate["seconds_by_part"] = seconds
        estimate["useful_flops"] = planned.useful(expected_length)
    if planned.whole_step:
        estimate["run"] = of_run(program, estimate, chip, prices)
    return estimate


def whole_step(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the records of a step's programs, which run one after the other.

    Args:
      parts: the record of `facts` of each.

    Returns:
      The memory of the larger one, the sums of what both take; refused where either is.
    """
    largest = max(parts, key=lambda part: (not part["fits"], part["peak_bytes"]))
    record = dict(largest)
    for key in _SUMS:
        if any(key in part for part in parts):
            record[key] = _sum([part.get(key) for part in parts])
    refused = [part["refused"] for part in parts if "refused" in part]
    return record | ({"refused": refused[0]} if refused else {})


def _sum(values):
    if None in values:
        return None
    if isinstance(values[0], Mapping):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _sum([value[key] for value in values if key in value]) for key in keys}
    if isinstance(values[0], Sequence):
        return tuple(map(sum, zip(*values, strict=True)))
    return sum(values)


def of_run(
    program: StepProgram, estimate: Mapping[str, Any], chip: Chip, prices: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Computes what a whole run takes, at both ends of the range of its step's time.

    Args:
      program, chip, prices: as in `facts`.
      estimate: `seconds`, `seconds_without_overlap` and `useful_flops` of its step.

    Returns:
      For 'roofline_lower_bound' and 'without_overlap': 'examples_per_second', 'mfu', 'chip_hours',
      and with a price, 'price'.
    """
    steps, size = program.experiment.schedule.train_steps, program.experiment.batches.size

    def taking(seconds):
        hours = seconds * steps * prices["chips"] / _HOUR
        mfu = estimate["useful_flops"] / seconds / chip.flops
        values = {"examples_per_second": size / seconds, "mfu": mfu, "chip_hours": hours}
        return values if prices["price"] is None else values | {"price": hours * prices["price"]}

    ends = {"roofline_lower_bound": "seconds", "without_overlap": "seconds_without_overlap"}
    return {name: taking(estimate[key]) for name, key in ends.items()}


def _refusal(measured, closed_form) -> str | None:
    """The reason to distrust a program's count, or None. Reward models have no closed form."""
    counted = measured.cost.flops - parts(measured.cost)[Part.REWARD].flops
    if math.isclose(counted, closed_form, rel_tol=TOLERANCE):
        return None
    return (
        f"the compiled program counts {counted / 1e9:.1f} GFLOP per chip, the closed form "
        f"{closed_form / 1e9:.1f}: they differ by more than {TOLERANCE:.0%}, so no estimate of it "
        "can be trusted; please report its run file"
    )


def setting(program: StepProgram) -> dict[str, Any]:
    """Builds the JSON record of a run's mesh and batch, and of work that the mesh cannot divide."""
    rows, source = program.batch.encoder_input_tokens.shape
    own = program.batch.teacher_encoder_input_tokens
    return {
        "mesh": {name: int(size) for name, size in program.mesh.shape.items()},
        "batch": [rows, source], **({} if own is None else {"teacher_input_length": own.shape[1]}),
        "target_length": program.batch.decoder_target_tokens.shape[1],
        "microbatches": program.experiment.batches.microbatches,
        "train_steps": program.experiment.schedule.train_steps,
        "whole_on_every_chip": undivided(program), "split_by_rows": split_by_rows(program),
    }  # fmt: skip


def undivided(program: StepProgram) -> list[str]:
    """Lists the work that the model axis cannot divide, so that every chip along it repeats it."""
    notes = []
    for role, config, prompts in _models(program):
        shards = shard_counts_of(program, config, prompts)
        heads = f"{_heads(config)} heads, nor do {prompts} rows divide over all chips"
        sizes = {
            "attention": (shards.heads, heads),
            "feed-forward layers": (shards.mlp, f"width {config.sizes.mlp_dim}"),
            "vocabulary": (shards.vocab, f"{config.vocab_size} ids"),
        }
        notes += [
            f"the {role}'s {name} ({size}) is not split over model={program.mesh.shape['model']}"
            for name, (split, size) in sizes.items()
            if split == 1
        ]
    return notes


def split_by_rows(program: StepProgram) -> list[str]:
    """Lists the models whose attention is split by rows, as their heads cannot be divided."""
    return [
        f"the {role}'s {_heads(config)} heads do not divide over "
        f"model={program.mesh.shape['model']}: its attention is split by rows, over all chips"
        for role, config, prompts in _models(program)
        if rows_are_spread(program, config, prompts)
    ]


def _heads(config) -> str:
    """The heads of the keys, of decoder and encoder where they differ."""
    stacks = [config.sizes, config.sizes.encoder or config.sizes]
    return " and ".join(dict.fromkeys(str(own.key_heads or own.num_heads) for own in stacks))


def _models(program):
    """(role, architecture, prompts per microbatch) of the models that a model axis divides."""
    prompts = program.batch.encoder_input_tokens.shape[0] // program.experiment.batches.microbatches
    for role, loaded in (("student", program.student), ("teacher", program.teacher)):
        if loaded is not None and program.mesh.shape["model"] > 1:
            yield role, loaded.config, prompts


def of_lengths(
    program: StepProgram,
    lengths: BatchLengths,
    estimates: Sequence[Mapping[str, Any]],
    chip: Chip,
    prices: Mapping[str, Any],
) -> dict[str, Any]:
    """Averages the records of a step over the lengths of a run's batches.

    Args:
      program, chip, prices: as in `facts`.
      lengths: shapes of the batches, and how often each occurs.
      estimates: the record of `facts` of every shape.

    Returns:
      The shapes, with their shares and times; the mean time and what the run takes, unless a
      shape has no time.
    """
    keys = ("seconds", "seconds_without_overlap", "useful_flops")
    record: dict[str, Any] = {
        "padding": lengths.padding,
        "shapes": [
            {"lengths": shape, "share": share, **{key: found.get(key) for key in keys}}
            for shape, share, found in zip(lengths.shapes, lengths.shares, estimates, strict=True)
        ],
    }
    if any(found["seconds"] is None for found in estimates):
        return record
    record |= {key: lengths.mean([found[key] for found in estimates]) for key in keys}
    return record | {"run": of_run(program, record, chip, prices)}
