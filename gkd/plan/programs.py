"""The programs of a run: closed-form memory and FLOPs before, measured cost after compilation."""

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
from gkd.train.build import abstract_batch
from gkd.train.method import rollout_length, student_generates
from gkd.train.model_flops import (
    UPDATE,
    generation_flops,
    meter_flops,
    prompt_length,
    sampled_steps,
    step_flops,
)
from gkd.train.step_program import StepProgram

# The compiler reports a shortage of memory in two forms: '… (20.12G) exceeds available HBM
# (15.75G)' and 'Used 20.12G of 15.75G hbm'.
_NEEDED = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] (?:of )?hbm",
    re.IGNORECASE,
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A program of a run before compilation.

    Attributes:
      lower: function that lowers it.
      held: resident bytes per chip while it runs, its arguments included, by name.
      cache: bytes per chip of the decoding cache, which is part of its temporaries.
      bound: greatest length of a completion in tokens.
      flops: function of the expected tokens per completion to the closed-form FLOPs per chip.
      useful: the same function without repeated products and divided evenly, as MFU counts them,
        in the mean over steps that sample and that do not; training steps only.
      whole_step: True for a training step in one program.
      sampled: share of the training steps that sample; all do where λ mixes examples.
      batch: name of the setting that holds its batch size.
    """

    lower: Callable[[], Any]
    held: Mapping[str, float]
    cache: float
    bound: int
    flops: Callable[[float], float]
    useful: Callable[[float], float] | None = None
    whole_step: bool = False
    sampled: float = 1.0
    batch: str = "BATCH_SIZE"


@dataclasses.dataclass(frozen=True)
class Measured:
    """The cost of a compiled program on one chip.

    Attributes:
      memory: memory of the program; None if the compiler ran out of HBM.
      needed: bytes that the compiler would have needed, if it ran out of HBM.
      cost: operations and bytes of the program; None if the compiler ran out of HBM.
      seconds: roofline lower bound in seconds, by part of the step.
      compile_seconds: duration of the compilation.
    """

    memory: ProgramMemory | None
    needed: float | None
    cost: ProgramCost | None
    seconds: dict[str, float]
    compile_seconds: float


def step_programs(program: StepProgram, name: str = "step") -> dict[str, Planned]:
    """Lists the training step, or its two halves if rewards are computed on the host.

    Args:
      program: the run's step program.
      name: name of the step in the result.

    Returns:
      The programs by name.
    """
    method, target = program.method, program.batch.decoder_target_tokens.shape[1]
    rows = program.batch.encoder_input_tokens.shape[0]
    bound = rollout_length(method, target)
    samples = student_generates(method)
    microbatch = rows // program.experiment.batches.microbatches
    cache = cache_bytes(program, program.student, microbatch, bound, method.samples)
    share = sampled_steps(program)
    halves = {"rollout": (Part.SAMPLING,), "update": (Part.TEACHER, UPDATE)}

    def planned(part, lower):
        def flops(length, **how):
            costs = step_flops(program, length, **how)
            return sum(costs[name] for name in halves.get(part, costs))

        return Planned(
            lower, resident(program), cache if samples and part != "update" else 0.0, bound, flops,
            lambda length: flops(share * length, split=False, repeats=False), part == "step",
            1.0 if method.mixing == "example" else share,
        )  # fmt: skip

    return {
        name if part == "step" else f"{name}: {part}": planned(part, lower)
        for part, lower in program.lower().items()
    }


def evaluation_programs(program: StepProgram) -> dict[str, Planned]:
    """Lists the programs of evaluation, with all that training keeps resident.

    References are scored as in the verb `evaluate`, which evaluation during training leaves out.
    Tasks of multiple-choice options generate nothing and have only the divergences.

    Args:
      program: the run's step program.

    Returns:
      The programs by name.
    """
    both = {"student": program.student, "teacher": program.teacher}
    writes = program.task.choices is None
    held, valid = resident(program), program.valid
    programs = {
        f"evaluation: {name}": _generator(program, loaded, 0.0, True, held, valid)
        for name, loaded in both.items()
        if loaded is not None and writes
    }
    if program.teacher is not None:
        meter = DivergenceMeter(program.student, program.teacher, program.mesh, valid)
        source, target = _lengths(program)
        batch = abstract_batch(program.task, program.evaluation_rows, source, target)
        programs["evaluation: divergences"] = Planned(
            lambda: meter.lower(batch), held,
            cache_bytes(program, program.student, program.evaluation_rows, target), target,
            lambda length: meter_flops(program, length), batch="EVALUATION_BATCH_SIZE",
        )  # fmt: skip
    return programs


def generation_programs(program: StepProgram) -> dict[str, Planned]:
    """Lists the sampling programs of `infer`, each model alone on the mesh in its inference dtype.

    Args:
      program: the run's step program.

    Returns:
      The programs by name.
    """
    programs = {}
    for name, loaded in (("student", program.student), ("teacher", program.teacher)):
        if loaded is not None:
            alone = _alone(program, loaded)
            held = {"parameters": share(alone.shapes)}
            valid = model_loading.scored_valid_ids(alone, program.task)
            programs[f"generation: {name}"] = _generator(program, alone, 1.0, False, held, valid)
    return programs


def _alone(program, loaded) -> LoadedModel:
    """A model as `infer` loads it: its parameters too in the dtype of inference."""
    return model_loading.load_model(
        "MODEL", program.mesh, meshes.rules_for(), program.task, loaded.config, None,
        **model_loading.inference_dtypes(None, program.mesh, loaded.config),
    )  # fmt: skip


def _generator(program, loaded, temperature, score, held, valid) -> Planned:
    """One output to each of `evaluation_rows` prompts."""
    source, target = prompt_length(program, loaded), _lengths(program)[1]
    program_of_outputs = generator.Generator(
        loaded=loaded,
        mesh=program.mesh,
        valid=valid,
        decoding=Decoding(max_length=target, temperature=temperature),
        buckets=(source,),
        batch_size=program.evaluation_rows,
        score=score,
    )
    return Planned(
        lambda: program_of_outputs.lower(source), held,
        cache_bytes(program, loaded, program.evaluation_rows, target), target,
        lambda length: generation_flops(program, loaded, length, score),
        batch="EVALUATION_BATCH_SIZE",
    )  # fmt: skip


def _lengths(program):
    """Lengths of inputs and targets in tokens."""
    batch = program.batch
    return batch.encoder_input_tokens.shape[1], batch.decoder_target_tokens.shape[1]


def measure(lower: Callable[[], Any], chip: Chip, expected_share: float | int) -> Measured:
    """Compiles a program, and counts its memory, operations and bytes.

    Args:
      lower: function that lowers the program.
      chip: the chip that it is compiled for.
      expected_share: share in [0, 1] of its greatest number of trips that a loop runs if it may
        stop early.

    Returns:
      The measured cost; without memory and cost if the compiler ran out of HBM.
    """
    begin = time.perf_counter()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:  # only its text shows a lack of memory
        needed = needed_memory(str(error))
        if needed is None:
            raise
        return Measured(None, needed, None, {}, time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    cost = program_cost(compiled.as_text(), expected_share=expected_share)
    times = {name: roofline(part, chip).seconds for name, part in parts(cost).items()}
    return Measured(program_memory(compiled), None, cost, times, seconds)


def needed_memory(message: str) -> float | None:
    """Parses the bytes of HBM that a program needs out of the compiler's error message.

    Args:
      message: text of the error.

    Returns:
      Bytes; None if the message reports another error.

    >>> needed_memory("RESOURCE_EXHAUSTED: Used 2.5G of 1.5G hbm")
    2684354560.0
    """
    match = _NEEDED.search(message)
    if "RESOURCE_EXHAUSTED" not in message or not match:
        return None
    size, unit = (match.group(1), match.group(2)) if match.group(1) else match.group(3, 4)
    return float(size) * _UNITS[unit.upper()]


def parts(cost: ProgramCost) -> dict[str, ProgramCost]:
    """Splits the cost of a step into the parts that `Part` names, and 'update' for the rest.

    Args:
      cost: cost of a whole step.

    Returns:
      Costs by the name of the part.
    """

    def part_of(operation):
        source = f"{operation.source} {getattr(operation, 'loop', '')}"
        return next((name.value for name in Part if name in source), UPDATE)

    return {
        name: dataclasses.replace(
            cost,
            parts=tuple(fusion for fusion in cost.parts if part_of(fusion) == name),
            collectives=tuple(sent for sent in cost.collectives if part_of(sent) == name),
        )
        for name in (*(part.value for part in Part), UPDATE)
    }
