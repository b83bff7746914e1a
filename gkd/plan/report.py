"""What `plan` says of a run: facts for JSON, lines for people, a verdict with what to change."""

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
from gkd.train.model_flops import rows_are_spread, split_of
from gkd.train.step_program import StepProgram

TOLERANCE = 0.03
DEEP = 12  # layers of a stack that take long to compile one by one
_GIB, _HOUR = 2**30, 3600.0


def measured(
    program: StepProgram,
    planned: Planned,
    chip: Chip,
    expected_length: float | int | None,
    prices: Mapping[str, Any],
) -> dict[str, Any]:
    """Compiles a program and says what was found, see `facts`.

    Args:
      program, planned, chip, prices: as in `facts`.
      expected_length: tokens of an output on average; None is as many as there can be.

    Raises:
      ValueError: outputs cannot be as long as expected.
    """
    longest = program.batch.decoder_target_tokens.shape[1]
    length = longest if expected_length is None else expected_length
    if not 0 < length <= longest:
        raise InvalidValue(f"--expected_length is {length}: outputs have at most {longest}")
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
    """What was measured of a program, as JSON.

    Args:
      program: of the run.
      planned, measured: one of its programs.
      chip: what it is for.
      expected_length: tokens of an output on average.
      prices: 'price' of a chip-hour or None, number of 'chips'.

    Returns:
      Memory, always. Counts and times only if the count of FLOPs is the closed form's; else
      `refused` says how they differ.
    """
    held = planned.held
    found: dict[str, Any] = {
        "fits": False, "held_bytes": dict(held), "cache_bytes": planned.cache,
        "capacity_bytes": chip.memory, "peak_bytes": measured.needed, "seconds": None,
        "compile_seconds": measured.compile_seconds,
    }  # fmt: skip
    if measured.cost is not None:
        # What a chip holds and the program does not take as an argument is there all the same.
        beside = max(0.0, sum(held.values()) - measured.memory.arguments)
        found["peak_bytes"] = measured.memory.peak + beside
        found["fits"] = found["peak_bytes"] <= chip.memory
        found["compiler"] = dataclasses.asdict(measured.memory)
    found["temporary_bytes"] = max(0.0, found["peak_bytes"] - sum(held.values()))
    if not found["fits"]:
        found["advice"] = advice(program, held, found["peak_bytes"], chip, planned.batch)
    if measured.cost is None:
        return found
    closed_form = planned.flops(expected_length)
    refusal = _refusal(measured, closed_form)
    if refusal:
        return found | {"refused": refusal}
    cost, seconds = measured.cost, sum(measured.seconds.values())
    found |= {
        "flops": cost.flops, "closed_form_flops": closed_form, "bytes": cost.bytes,
        "wire_bytes": cost.wire_bytes, "collectives": cost.by_kind(),
        "network_bytes": cost.network_bytes, "between_slices": cost.by_kind(between_slices=True),
        "network_seconds": chip.network and roofline(cost, chip).network,
        "seconds": seconds, "seconds_without_overlap": roofline(cost, chip).one_by_one,
    }  # fmt: skip
    if planned.useful is not None:
        found["seconds_by_part"] = measured.seconds
    if planned.examples:
        hours = seconds * program.train_steps * prices["chips"] / _HOUR
        found["mfu"] = planned.useful(expected_length) / seconds / chip.flops
        found |= {"examples_per_second": planned.examples / seconds, "chip_hours": hours}
        if prices["price"] is not None:
            found["price"] = hours * prices["price"]
    return found


def _refusal(measured, closed_form) -> str | None:
    """Why no figure of a program can be trusted, if so. A reward's model has no closed form."""
    counted = measured.cost.flops - parts(measured.cost)[Part.REWARD].flops
    if math.isclose(counted, closed_form, rel_tol=TOLERANCE):
        return None
    return (
        f"the compiled program counts {counted / 1e9:.1f} GFLOP a chip, the closed form "
        f"{closed_form / 1e9:.1f}: they differ by more than {TOLERANCE:.0%}, so no estimate of it "
        "can be trusted; please report its run file"
    )


def setting(program: StepProgram) -> dict[str, Any]:
    """The mesh, the batch, what the mesh does not divide, and what it divides by rows instead."""
    rows, source = program.batch.encoder_input_tokens.shape
    return {
        "mesh": {name: int(size) for name, size in program.mesh.shape.items()},
        "batch": [rows, source], "target_length": program.batch.decoder_target_tokens.shape[1],
        "microbatches": program.microbatches, "train_steps": program.train_steps,
        "whole_on_every_chip": undivided(program), "split_by_rows": split_by_rows(program),
    }  # fmt: skip


def undivided(program: StepProgram) -> list[str]:
    """What the model axis does not divide, so that every chip along it does all of it."""
    notes = []
    for role, config, prompts in _models(program):
        ways = split_of(program, config, prompts)
        heads = f"{config.num_heads} heads, nor do {prompts} rows divide over all chips"
        sizes = {
            "attention": (ways.heads, heads),
            "feed-forward layers": (ways.mlp, f"width {config.mlp_dim}"),
            "vocabulary": (ways.vocab, f"{config.vocab_size} ids"),
        }
        notes += [
            f"the {role}'s {name} ({size}) is not split over model={program.mesh.shape['model']}"
            for name, (split, size) in sizes.items()
            if split == 1
        ]
    return notes


def split_by_rows(program: StepProgram) -> list[str]:
    """Whose heads the model axis does not divide, so that rows are, over both axes."""
    return [
        f"the {role}'s {config.num_heads} heads do not divide over "
        f"model={program.mesh.shape['model']}: its attention is split by rows, over all chips"
        for role, config, prompts in _models(program)
        if rows_are_spread(program, config, prompts)
    ]


def _models(program):
    """(role, architecture, prompts at the same time) of those that a model axis is to divide."""
    prompts = program.batch.encoder_input_tokens.shape[0] // program.microbatches
    for role, loaded in (("student", program.learner), ("teacher", program.expert)):
        if loaded is not None and program.mesh.shape["model"] > 1:
            yield role, loaded.config, prompts


def heading(program: StepProgram) -> str:
    """The first lines."""
    known = setting(program)
    mesh = ", ".join(f"{name} {size}" for name, size in known["mesh"].items())
    rows, source = known["batch"]
    first = (
        f"mesh {mesh}; {rows} rows of {source} in, {known['target_length']} out; "
        f"{known['microbatches']} microbatches; {known['train_steps']} steps. Of one chip:"
    )
    notes = [*known["whole_on_every_chip"], *known["split_by_rows"], *_slow_to_compile(program)]
    return "\n".join([first, *(f"note: {note}" for note in notes)])


def _slow_to_compile(program):
    for role, loaded in (("student", program.learner), ("teacher", program.expert)):
        config = loaded and loaded.config
        if config and not config.stacked_layers and config.num_encoder_layers >= DEEP:
            yield (
                f"the {role}'s {config.num_encoder_layers} layers are compiled one by one: "
                f"--gin.{role.upper()}_STACKED=True is faster, here and in training"
            )


def lines(name: str, found: Mapping[str, Any]) -> list[str]:
    """A program's facts."""
    parts = {**found["held_bytes"], "temporaries": found["temporary_bytes"]}
    sizes = ", ".join(f"{key} {size / _GIB:.2f}" for key, size in parts.items())
    if found["cache_bytes"]:
        sizes += f", of which the decoding cache {found['cache_bytes'] / _GIB:.2f}"
    said = [f"\n{name}: {_verdict(found)} ({sizes})"]
    said += [f"  change: {change}" for change in found.get("advice", ())]
    if "refused" in found:
        said.append(f"  no estimate: {found['refused']}")
    if found["seconds"] is None:
        return said
    said.append(
        f"  {found['flops'] / 1e9:.1f} GFLOP ({found['closed_form_flops'] / 1e9:.1f} in closed "
        f"form), {found['bytes'] / 1e9:.2f} GB of memory, "
        f"exchanges: {_exchanges(found['collectives'])}"
    )
    if found["between_slices"]:
        seconds = found["network_seconds"]
        said.append(
            f"  between slices: {_exchanges(found['between_slices'])}; a chip sends "
            f"{found['network_bytes'] / 1e6:.1f} MB, "
            + ("which no time here includes" if seconds is None else f"{1e3 * seconds:.2f} ms")
        )
    times = {key: value for key, value in found.get("seconds_by_part", {}).items() if value}
    split = ", ".join(f"{key.removeprefix('gkd_')} {1e3 * x:.2f}" for key, x in times.items())
    said.append(
        f"  at best {1e3 * found['seconds']:.2f} ms{split and f' ({split})'}; without any overlap "
        f"{1e3 * found['seconds_without_overlap']:.2f} ms; compiled in "
        f"{found['compile_seconds']:.0f} s"
    )
    if "examples_per_second" in found:
        known = f"  at best {found['examples_per_second']:.1f} examples/s"
        known += f", MFU {100 * found['mfu']:.1f}%"
        known += f", {found['chip_hours']:.1f} chip-hours for the run"
        if "price" in found:
            known += f", {found['price']:.2f} in money"
        said.append(known)
    return said


def _exchanges(kinds):
    listed = ", ".join(
        f"{count:.0f} {kind}s of {size / 1e6:.1f} MB"
        for kind, (count, size) in sorted(kinds.items())
    )
    return listed or "none"


def _verdict(found):
    peak, capacity = found["peak_bytes"] / _GIB, found["capacity_bytes"] / _GIB
    return f"{'fits' if found['fits'] else 'does NOT fit'}: {peak:.2f} of {capacity:.2f} GiB"


def name_of(candidate: Mapping[str, Any]) -> str:
    """A candidate of a search in short."""
    return (
        f"data:{candidate['data']},model:{candidate['model_parallelism']} "
        f"× {candidate['microbatches']} microbatches"
    )


def candidate(found: Mapping[str, Any]) -> str:
    """A line of a search."""
    if "failed" in found:
        return f"{name_of(found)}: does not compile: {found['failed']}"
    line = f"{name_of(found)}: {_verdict(found)}"
    if found["seconds"] is not None:
        line += f", at best {1e3 * found['seconds']:.2f} ms"
    return line + (f"; no estimate: {found['refused']}" if "refused" in found else "")
