"""What `plan` says of a run: facts for JSON, lines for people, a verdict with what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gkd.jobs.plan_flops import split_of
from gkd.jobs.plan_programs import Measured
from gkd.jobs.step_program import StepProgram
from gkd.parallel.roofline import Chip, roofline

TOLERANCE = 0.03
STEP = ("step", "rollout", "update")
_GIB, _HOUR = 2**30, 3600.0


def facts(
    program: StepProgram,
    measured: Measured,
    chip: Chip,
    expected: Mapping[str, float] | None,
    prices: Mapping[str, Any],
    part: str,
) -> dict[str, Any]:
    """What was measured of a program, as JSON.

    Args:
      program: of the run.
      measured: of one of its programs.
      chip: what it is for.
      expected: closed-form FLOPs of a chip, 'counted' and 'useful', or None.
      prices: 'price' of a chip-hour or None, number of 'chips'.
      part: 'step', or 'rollout' and 'update', its halves where rewards read texts, or another.

    Raises:
      ValueError: the count of FLOPs is not the closed form's.
    """
    held = resident(program)
    found: dict[str, Any] = {"fits": False, "held_bytes": held, "capacity_bytes": chip.memory}
    found |= {"peak_bytes": measured.needed, "seconds": None}
    found["compile_seconds"] = measured.compile_seconds
    if measured.cost is None:
        return found | {"advice": advice(program, held, measured.needed, chip)}
    memory, cost = measured.memory, measured.cost
    peak = memory.peak
    if (
        part not in STEP
    ):  # the student's parameters are its argument, the rest of the run is there too
        peak += sum(held.values()) - held["parameters"]
    found |= {
        "fits": peak <= chip.memory, "peak_bytes": peak,
        "temporary_bytes": memory.temporaries, "argument_bytes": memory.arguments,
        "flops": cost.flops, "bytes": cost.bytes, "wire_bytes": cost.wire_bytes,
        "collectives": cost.by_kind(), "seconds_by_part": measured.seconds if part in STEP else {},
        "seconds": sum(measured.seconds.values()),
        "seconds_without_overlap": roofline(cost, chip).one_by_one,
    }  # fmt: skip
    if not found["fits"]:
        found["advice"] = advice(program, held, peak, chip)
    if expected is not None:
        found |= _checked(cost.flops, expected, found["seconds"], chip)
    if part == "step":
        rows = program.batch.encoder_input_tokens.shape[0]
        hours = found["seconds"] * program.train_steps * prices["chips"] / _HOUR
        found |= {"examples_per_second": rows / found["seconds"], "chip_hours": hours}
        if prices["price"] is not None:
            found["price"] = hours * prices["price"]
    return found


def _checked(flops, expected, seconds, chip):
    """The closed form beside the count; no figure rests on a count that it contradicts."""
    ratio = flops / expected["counted"]
    if not math.isclose(ratio, 1, abs_tol=TOLERANCE):
        raise ValueError(
            f"the compiled step counts {flops / 1e9:.1f} GFLOP a chip, the closed form "
            f"{expected['counted'] / 1e9:.1f}: they differ by more than {TOLERANCE:.0%}, so no "
            "estimate of this program can be trusted; please report its run file"
        )
    useful = expected["useful"]
    return {"closed_form_flops": expected["counted"], "mfu": useful / seconds / chip.flops}


def resident(program: StepProgram) -> dict[str, float]:
    """Bytes that one chip holds from step to step: parameters, optimizer, teacher, …"""
    state = program.state.abstract
    held = {"parameters": _share(state.params), "optimizer": _share(state.opt_state)}
    held["rest of the state"] = _share(state) - sum(held.values())
    for name, loaded in (("teacher", program.expert), ("reward model", program.judge)):
        if loaded is not None:
            held[name] = _share(loaded.shapes)
    return held


def _share(tree):
    """Bytes of one chip's part of abstract arrays."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def advice(
    program: StepProgram, held: Mapping[str, float], peak: float | int, chip: Chip
) -> list[str]:
    """What to change in a run that does not fit, the most useful first."""
    changes = []
    models = {"teacher": held.get("teacher", 0), "student": held["parameters"] + held["optimizer"]}
    total = sum(held.values())
    for name, size in sorted(models.items(), key=lambda item: -item[1]):
        if size > chip.memory / 4:
            changes.append(
                f"the {name} takes {size / _GIB:.1f} GiB of every chip: split it with "
                "--gin.FULLY_SHARDED=True or a larger model axis (MODEL_PARALLELISM)"
            )
    if peak - total > chip.memory / 4:
        rows = program.batch.encoder_input_tokens.shape[0] // program.mesh.shape["data"]
        if rows > program.microbatches:
            changes.append(f"--gin.MICROBATCHES={2 * program.microbatches} halves what is alive")
        if not program.learner.config.remat:
            changes.append("--gin.REMAT=True recomputes the student's activations")
    return changes or ["use a larger slice or a smaller BATCH_SIZE"]


def setting(program: StepProgram) -> dict[str, Any]:
    """The mesh, the batch, and what the mesh does not divide."""
    rows, source = program.batch.encoder_input_tokens.shape
    return {
        "mesh": {name: int(size) for name, size in program.mesh.shape.items()},
        "batch": [rows, source], "target_length": program.batch.decoder_target_tokens.shape[1],
        "microbatches": program.microbatches, "train_steps": program.train_steps,
        "whole_on_every_chip": undivided(program),
    }  # fmt: skip


def undivided(program: StepProgram) -> list[str]:
    """What the model axis does not divide, so that every chip along it does all of it."""
    axis = program.mesh.shape["model"]
    models = {"student": program.learner, "teacher": program.expert}
    notes = []
    for role, loaded in models.items():
        if loaded is None or axis == 1:
            continue
        config, ways = loaded.config, split_of(program, loaded.config)
        sizes = {
            "attention": (ways.heads, f"{config.num_heads} heads"),
            "feed-forward layers": (ways.mlp, f"width {config.mlp_dim}"),
            "vocabulary": (ways.vocab, f"{config.vocab_size} ids"),
        }
        notes += [
            f"the {role}'s {name} ({size}) is not split over model={axis}"
            for name, (split, size) in sizes.items()
            if split == 1
        ]
    return notes


def heading(program: StepProgram) -> str:
    """The first lines."""
    known = setting(program)
    mesh = ", ".join(f"{name} {size}" for name, size in known["mesh"].items())
    rows, source = known["batch"]
    first = (
        f"mesh {mesh}; {rows} rows of {source} in, {known['target_length']} out; "
        f"{known['microbatches']} microbatches; {known['train_steps']} steps. Of one chip:"
    )
    return "\n".join([first, *(f"note: {note}" for note in known["whole_on_every_chip"])])


def lines(name: str, found: Mapping[str, Any], chip: Chip) -> list[str]:
    """A program's facts."""
    held = ", ".join(f"{key} {size / _GIB:.2f}" for key, size in found["held_bytes"].items())
    verdict = "fits" if found["fits"] else "does NOT fit"
    peak, capacity = found["peak_bytes"] / _GIB, chip.memory / _GIB
    said = [f"\n{name}: {verdict}: {peak:.2f} of {capacity:.0f} GiB ({held}"]
    if found["seconds"] is None:
        said[0] += ")"
        return [*said, *(f"  change: {change}" for change in found["advice"])]
    said[0] += f", temporaries {found['temporary_bytes'] / _GIB:.2f})"
    said += [f"  change: {change}" for change in found.get("advice", ())]
    exchanges = ", ".join(
        f"{count:.0f} {kind}s of {size / 1e6:.1f} MB"
        for kind, (count, size) in sorted(found["collectives"].items())
    )
    said.append(
        f"  {found['flops'] / 1e9:.1f} GFLOP, {found['bytes'] / 1e9:.2f} GB of memory, exchanges: "
        f"{exchanges or 'none'}"
    )
    parts = {key: value for key, value in found["seconds_by_part"].items() if value}
    split = ", ".join(f"{key.removeprefix('gkd_')} {1e3 * x:.2f}" for key, x in parts.items())
    said.append(
        f"  at best {1e3 * found['seconds']:.2f} ms{split and f' ({split})'}; without any overlap "
        f"{1e3 * found['seconds_without_overlap']:.2f} ms; compiled in "
        f"{found['compile_seconds']:.0f} s"
    )
    if "examples_per_second" in found:
        known = f"  at best {found['examples_per_second']:.1f} examples/s"
        if "mfu" in found:
            known += f", MFU {100 * found['mfu']:.1f}%"
        known += f", {found['chip_hours']:.1f} chip-hours for the run"
        if "price" in found:
            known += f", {found['price']:.2f} in money"
        said.append(known)
    return said


def name_of(candidate: Mapping[str, Any]) -> str:
    """A candidate of a search in short."""
    return (
        f"data:{candidate['data']},model:{candidate['model_parallelism']} "
        f"× {candidate['microbatches']} microbatches"
    )


def candidate(found: Mapping[str, Any]) -> str:
    """A line of a search."""
    verdict = "fits" if found["fits"] else "does NOT fit"
    seconds = "" if found["seconds"] is None else f", at best {1e3 * found['seconds']:.2f} ms"
    return f"{name_of(found)}: {verdict}, {found['peak_bytes'] / _GIB:.2f} GiB{seconds}"
