"""The report of `plan`: JSON records, lines of text, and advice where a program does not fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from gkd.distill.train_step import Part
from gkd.errors import InvalidValue
from gkd.plan.memory import advice
from gkd.plan.programs import Measured, Planned, measure, parts
from gkd.program_cost.roofline import Chip, roofline
from gkd.train.model_flops import rows_are_spread, shard_counts_of
from gkd.train.step_program import StepProgram

TOLERANCE = 0.03
DEEP = 12  # layers from which on an unrolled stack takes long to compile
_GIB, _HOUR = 2**30, 3600.0


def completion_length(program: StepProgram, expected: float | int | None) -> float | int:
    """Returns the tokens per completion to count with.

    Args:
      program: the run's step program.
      expected: mean tokens per completion; None is the greatest length.

    Raises:
      ValueError: completions cannot be as long as expected.
    """
    longest = program.batch.decoder_target_tokens.shape[1]
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
    cost, seconds = measured.cost, sum(measured.seconds.values())
    estimate |= {
        "flops": cost.flops, "closed_form_flops": closed_form, "bytes": cost.bytes,
        "wire_bytes": cost.wire_bytes, "collectives": cost.by_kind(),
        "dcn_bytes": cost.dcn_bytes, "dcn_collectives": cost.by_kind(between_slices=True),
        "dcn_seconds": chip.dcn and roofline(cost, chip).dcn,
        "seconds": seconds, "seconds_without_overlap": roofline(cost, chip).no_overlap,
    }  # fmt: skip
    if planned.useful is not None:
        estimate["seconds_by_part"] = measured.seconds
    if planned.examples:
        hours = seconds * program.experiment.schedule.train_steps * prices["chips"] / _HOUR
        estimate["mfu"] = planned.useful(expected_length) / seconds / chip.flops
        estimate |= {"examples_per_second": planned.examples / seconds, "chip_hours": hours}
        if prices["price"] is not None:
            estimate["price"] = hours * prices["price"]
    return estimate


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
        heads = f"{config.sizes.num_heads} heads, nor do {prompts} rows divide over all chips"
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
        f"the {role}'s {config.sizes.num_heads} heads do not divide over "
        f"model={program.mesh.shape['model']}: its attention is split by rows, over all chips"
        for role, config, prompts in _models(program)
        if rows_are_spread(program, config, prompts)
    ]


def _models(program):
    """(role, architecture, prompts per microbatch) of the models that a model axis divides."""
    prompts = program.batch.encoder_input_tokens.shape[0] // program.experiment.batches.microbatches
    for role, loaded in (("student", program.student), ("teacher", program.teacher)):
        if loaded is not None and program.mesh.shape["model"] > 1:
            yield role, loaded.config, prompts


def heading(program: StepProgram) -> str:
    """Renders the first lines of the report: mesh, batch and notes."""
    known = setting(program)
    mesh = ", ".join(f"{name} {size}" for name, size in known["mesh"].items())
    rows, source = known["batch"]
    if "teacher_input_length" in known:
        source = f"{source} (teacher {known['teacher_input_length']})"
    first = (
        f"mesh {mesh}; {rows} rows of {source} in, {known['target_length']} out; "
        f"{known['microbatches']} microbatches; {known['train_steps']} steps. Per chip:"
    )
    notes = [*known["whole_on_every_chip"], *known["split_by_rows"], *_slow_to_compile(program)]
    return "\n".join([first, *(f"note: {note}" for note in notes)])


def _slow_to_compile(program):
    for role, loaded in (("student", program.student), ("teacher", program.teacher)):
        config = loaded and loaded.config
        if config and not config.stacked_layers and config.sizes.encoder_layers >= DEEP:
            yield (
                f"the {role}'s {config.sizes.encoder_layers} layers are compiled separately: "
                f"--gin.{role.upper()}_STACKED=True is faster, here and in training"
            )


def lines(name: str, estimate: Mapping[str, Any]) -> list[str]:
    """Renders the record of a program as lines of text.

    Args:
      name: name of the program.
      estimate: the record of `facts`.
    """
    parts = {**estimate["resident_bytes"], "temporaries": estimate["temporary_bytes"]}
    sizes = ", ".join(f"{key} {size / _GIB:.2f}" for key, size in parts.items())
    if estimate["cache_bytes"]:
        sizes += f", of which the decoding cache {estimate['cache_bytes'] / _GIB:.2f}"
    report = [f"\n{name}: {_verdict(estimate)} ({sizes})"]
    report += [f"  change: {change}" for change in estimate.get("advice", ())]
    if "refused" in estimate:
        report.append(f"  no estimate: {estimate['refused']}")
    if estimate["seconds"] is None:
        return report
    report.append(
        f"  {estimate['flops'] / 1e9:.1f} GFLOP ({estimate['closed_form_flops'] / 1e9:.1f} in "
        f"closed form), {estimate['bytes'] / 1e9:.2f} GB of HBM traffic, "
        f"collectives: {_listed(estimate['collectives'])}"
    )
    if estimate["dcn_collectives"]:
        seconds = estimate["dcn_seconds"]
        report.append(
            f"  DCN traffic: {_listed(estimate['dcn_collectives'])}; "
            f"{estimate['dcn_bytes'] / 1e6:.1f} MB sent per chip, "
            + ("not included in the times" if seconds is None else f"{1e3 * seconds:.2f} ms")
        )
    times = {key: value for key, value in estimate.get("seconds_by_part", {}).items() if value}
    split = ", ".join(f"{key.removeprefix('gkd_')} {1e3 * x:.2f}" for key, x in times.items())
    report.append(
        f"  roofline lower bound {1e3 * estimate['seconds']:.2f} ms{split and f' ({split})'}; "
        f"without overlap {1e3 * estimate['seconds_without_overlap']:.2f} ms; compiled in "
        f"{estimate['compile_seconds']:.0f} s"
    )
    if "examples_per_second" in estimate:
        line = f"  at most {estimate['examples_per_second']:.1f} examples/s"
        line += f", MFU {100 * estimate['mfu']:.1f}%"
        line += f", {estimate['chip_hours']:.1f} chip-hours for the run"
        if "price" in estimate:
            line += f", price {estimate['price']:.2f}"
        report.append(line)
    return report


def _listed(kinds):
    listed = ", ".join(
        f"{count:.0f} {kind}s of {size / 1e6:.1f} MB"
        for kind, (count, size) in sorted(kinds.items())
    )
    return listed or "none"


def _verdict(estimate):
    peak, capacity = estimate["peak_bytes"] / _GIB, estimate["capacity_bytes"] / _GIB
    return f"{'fits' if estimate['fits'] else 'does NOT fit'}: {peak:.2f} of {capacity:.2f} GiB"


def name_of(candidate: Mapping[str, Any]) -> str:
    """Names a candidate of a search: its mesh and number of microbatches."""
    return (
        f"data:{candidate['data']},model:{candidate['model_parallelism']} "
        f"× {candidate['microbatches']} microbatches"
    )


def candidate(estimate: Mapping[str, Any]) -> str:
    """Renders a candidate of a search as one line."""
    if "failed" in estimate:
        return f"{name_of(estimate)}: does not compile: {estimate['failed']}"
    line = f"{name_of(estimate)}: {_verdict(estimate)}"
    if estimate["seconds"] is not None:
        line += f", roofline lower bound {1e3 * estimate['seconds']:.2f} ms"
    return line + (f"; no estimate: {estimate['refused']}" if "refused" in estimate else "")
