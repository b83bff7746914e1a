"""A run's programs: what each holds and multiplies by itself, and compiled, what it needs."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from gkd.distill.train_step import Part
from gkd.evaluate.divergence_meter import DivergenceMeter
from gkd.infer import generator
from gkd.infer.decode_options import Decoding
from gkd.parallel import mesh as meshes
from gkd.plan.memory import cache_bytes, resident, share
from gkd.program_cost.program_cost import ProgramCost, ProgramMemory, program_cost, program_memory
from gkd.program_cost.roofline import Chip, roofline
from gkd.runs import model_loading
from gkd.runs.model_loading import LoadedModel
from gkd.train.model_flops import UPDATE, generation_flops, meter_flops, step_flops
from gkd.train.step_program import StepProgram, abstract_batch

# The compiler's two ways of saying how much it would have needed: '… (20.12G) exceeds available
# HBM (15.75G)' and 'Used 20.12G of 15.75G hbm'.
_NEEDED = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] (?:of )?hbm",
    re.IGNORECASE,
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A program of a run, not compiled yet.

    Attributes:
      lower: lowers it.
      held: bytes that a chip holds meanwhile, its arguments too, by name.
      cache: bytes on a chip of decoding's keys and values, which are among its temporaries.
      bound: tokens of an output at most.
      flops: (expected tokens of an output) -> its matrix products on one chip in closed form.
      useful: the same with each product once, divided evenly: what MFU counts; of a step only.
      examples: rows of a training step; 0 for what trains nothing.
      batch: what sets its rows, in words.
    """

    lower: Callable[[], Any]
    held: Mapping[str, float]
    cache: float
    bound: int
    flops: Callable[[float], float]
    useful: Callable[[float], float] | None = None
    examples: int = 0
    batch: str = "BATCH_SIZE"


@dataclasses.dataclass(frozen=True)
class Measured:
    """One compiled program on one chip.

    Attributes:
      memory: None where the compiler ran out of it.
      needed: bytes, where it did.
      cost: None likewise.
      seconds: of the roofline by part of the step.
      compile_seconds: how long the compiler took.
    """

    memory: ProgramMemory | None
    needed: float | None
    cost: ProgramCost | None
    seconds: dict[str, float]
    compile_seconds: float


def step_programs(program: StepProgram, name: str = "step") -> dict[str, Planned]:
    """The training step, or its two halves where rewards read texts."""
    method, target = program.method, program.batch.decoder_target_tokens.shape[1]
    rows = program.batch.encoder_input_tokens.shape[0]
    bound = method.rollout_length or target
    samples = callable(method.on_policy_fraction) or method.on_policy_fraction > 0
    at_once = rows // program.microbatches
    cache = cache_bytes(program, program.learner, at_once, bound, method.samples)
    halves = {"rollout": (Part.SAMPLING,), "update": (Part.TEACHER, UPDATE)}

    def planned(part, lower):
        def flops(length, **how):
            costs = step_flops(program, length, **how)
            return sum(costs[one] for one in halves.get(part, costs))

        return Planned(
            lower, resident(program), cache if samples and part != "update" else 0.0, bound, flops,
            lambda length: flops(length, split=False, repeats=False), rows if part == "step" else 0,
        )  # fmt: skip

    return {
        name if part == "step" else f"{name}: {part}": planned(part, lower)
        for part, lower in program.lower().items()
    }


def evaluation_programs(program: StepProgram) -> dict[str, Planned]:
    """What training's evaluation and the verb `evaluate` run, beside all that training holds.

    The references are scored as in `evaluate`; training's own leaves that out. Tasks whose options
    are scored write nothing: of them only the divergences are here.
    """
    both = {"student": program.learner, "teacher": program.expert}
    writes = program.task.choices is None
    programs = {
        f"evaluation: {name}": _generator(program, loaded, 0.0, True, resident(program))
        for name, loaded in both.items()
        if loaded is not None and writes
    }
    if program.expert is not None:
        meter = DivergenceMeter(
            program.learner, program.expert, program.mesh, program.rules, program.valid
        )
        source, target = _lengths(program)
        batch = abstract_batch(program.evaluation_rows, source, target)
        programs["evaluation: divergences"] = Planned(
            lambda: meter.lower(batch), resident(program),
            cache_bytes(program, program.learner, program.evaluation_rows, target), target,
            lambda length: meter_flops(program, length), batch="EVALUATION_BATCH_SIZE",
        )  # fmt: skip
    return programs


def generation_programs(program: StepProgram) -> dict[str, Planned]:
    """What `infer` runs, sampling, with each model alone on the mesh in the dtype of inference."""
    programs = {}
    for name, loaded in (("student", program.learner), ("teacher", program.expert)):
        if loaded is not None:
            alone = _alone(program, loaded)
            held = {"parameters": share(alone.shapes)}
            programs[f"generation: {name}"] = _generator(program, alone, 1.0, False, held)
    return programs


def _alone(program, loaded) -> LoadedModel:
    """A model as `infer` loads it: its parameters too in the dtype of inference."""
    return model_loading.load_model(
        "MODEL", program.mesh, meshes.rules_for(), program.task, loaded.config, None,
        **model_loading.inference_ways(None, program.mesh),
    )  # fmt: skip


def _generator(program, loaded, temperature, score, held) -> Planned:
    """One output to each of `evaluation_rows` prompts."""
    source, target = _lengths(program)
    program_of_outputs = generator.Generator(
        loaded, program.mesh, program.rules, program.valid,
        Decoding(max_length=target, temperature=temperature), (source,), program.evaluation_rows,
        score,
    )  # fmt: skip
    return Planned(
        lambda: program_of_outputs.lower(source), held,
        cache_bytes(program, loaded, program.evaluation_rows, target), target,
        lambda length: generation_flops(program, loaded, length, score),
        batch="EVALUATION_BATCH_SIZE",
    )  # fmt: skip


def _lengths(program):
    """Tokens of inputs and of targets."""
    batch = program.batch
    return batch.encoder_input_tokens.shape[1], batch.decoder_target_tokens.shape[1]


def measure(lower: Callable[[], Any], chip: Chip, expected_share: float | int) -> Measured:
    """Compiles a program and counts it.

    Args:
      lower: lowers it.
      chip: what it is compiled for.
      expected_share: how much of its bound a loop that may stop early runs.
    """
    begin = time.perf_counter()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:  # only its text tells running out of memory
        needed = needed_memory(str(error))
        if needed is None:
            raise
        return Measured(None, needed, None, {}, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    cost = program_cost(compiled.as_text(), expected_share=expected_share)
    times = {name: roofline(part, chip).seconds for name, part in parts(cost).items()}
    return Measured(program_memory(compiled), None, cost, times, seconds)


def needed_memory(message: str) -> float | None:
    """Bytes of main memory that the compiler says it would need; None if it says something else."""
    found = _NEEDED.search(message)
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return None
    size, unit = (found.group(1), found.group(2)) if found.group(1) else found.group(3, 4)
    return float(size) * _UNITS[unit.upper()]


def parts(cost: ProgramCost) -> dict[str, ProgramCost]:
    """The cost of a step, part by part: what `Part` names, and 'update', the rest."""

    def part_of(one):
        source = f"{one.source} {getattr(one, 'loop', '')}"
        return next((name.value for name in Part if name in source), UPDATE)

    return {
        name: dataclasses.replace(
            cost,
            parts=tuple(one for one in cost.parts if part_of(one) == name),
            collectives=tuple(one for one in cost.collectives if part_of(one) == name),
        )
        for name in (*(part.value for part in Part), UPDATE)
    }
