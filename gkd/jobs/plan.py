"""The verb `plan`: whether a run fits a TPU slice and what it costs, compiled without one."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import rich.console

from gkd.jobs import plan_report
from gkd.jobs.plan_flops import step_flops
from gkd.jobs.plan_programs import lowered, measure
from gkd.jobs.step_program import StepProgram
from gkd.parallel.roofline import CHIPS
from gkd.parallel.topologies import topology_devices

# What makes a run of any method a fine-tuning of the same student on the same data.
SFT = {
    "divergence": None, "beta": None, "on_policy_fraction": 0.0, "mixing": "batch", "samples": 1,
    "rollout_length": None, "teacher": None, "teacher_model": None, "teacher_top_k": None,
    "reward": None, "alpha": 1.0, "replay": None,
}  # fmt: skip
PROGRAMS = ("step", "sft", "evaluation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own options, besides its run's gin files."""
    parser.add_argument("--topology", required=True, help="v5e:16x16, v4:4x4x4, cpu:8 (for tests)")
    parser.add_argument("--mesh", help="data:64,model:4; by default the run's MODEL_PARALLELISM")
    parser.add_argument(
        "--programs", default=",".join(PROGRAMS), help="which to compile, with commas between"
    )
    parser.add_argument(
        "--expected_length", type=float, help="tokens of an output on average; by default all"
    )
    parser.add_argument("--price", type=float, help="of a chip for an hour")
    parser.add_argument(
        "--search", action="store_true",
        help="compile the step for every mesh and number of microbatches that divide; rank them",
    )  # fmt: skip
    parser.add_argument("--output", help="a JSON file for all of it")


def plan(
    run: Callable[..., Any],
    topology: str,
    mesh: str | None = None,
    programs: str = ",".join(PROGRAMS),
    expected_length: float | int | None = None,
    price: float | int | None = None,
    search: bool = False,
    output: str | None = None,
) -> dict[str, Any]:
    """Compiles a run's programs for a topology; prints and returns what they need and take.

    Args:
      run: `train`, configured; it is called with `dry_run`.
      topology: see `topology_devices`.
      mesh: 'data:64,model:4'.
      programs: of `PROGRAMS`, separated by commas.
      expected_length: tokens of an output on average, for the time of sampling.
      price: of a chip-hour, in any currency.
      search: whether to try meshes and microbatches instead.
      output: a JSON file.

    Returns:
      What the JSON file holds.

    Raises:
      ValueError: something does not fit together, or a count of FLOPs cannot be trusted.
    """
    chip = CHIPS.get(topology.partition(":")[0])
    devices = topology_devices(topology)
    path = output and pathlib.Path(output)
    if path and not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: {path} cannot be written there")
    model = _model_axis(mesh, len(devices)) if mesh else None
    trace = functools.partial(run, dry_run=lambda program: program, devices=devices)
    console = rich.console.Console(soft_wrap=True, highlight=False)
    prices = {"price": price, "chips": len(devices)}
    if search:
        result = _search(trace, len(devices), chip, expected_length, prices, console)
    else:
        given = {} if model is None else {"model_parallelism": model}
        result = _measure(trace, given, _names(programs), chip, expected_length, prices, console)
    result = {"topology": topology, "expected_length": expected_length, **result}
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _names(programs):
    names = [name for name in programs.split(",") if name]
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown or not names:
        raise ValueError(f"--programs is {programs!r}: choose of {', '.join(PROGRAMS)}")
    return names


def _model_axis(mesh: str, chips: int) -> int:
    """The size of the model axis in 'data:64,model:4'; the two must make up all chips."""
    parts = dict(part.partition(":")[::2] for part in mesh.split(","))
    if not set(parts) <= {"data", "model"} or not all(size.isdigit() for size in parts.values()):
        raise ValueError(f"--mesh is {mesh!r}: write it as data:64,model:4")
    model = int(parts.get("model", 1))
    data = int(parts.get("data", chips // max(model, 1)))
    if data * model != chips:
        raise ValueError(
            f"--mesh is {mesh!r}: data × model is {data * model}, the chips are {chips}"
        )
    return model


def _measure(trace, given, names, chip, expected_length, prices, console):
    """Every program of one setting."""
    step = trace(**given)
    console.print(plan_report.heading(step))
    results = {}
    for name in names:
        program = trace(**given, **SFT) if name == "sft" else step
        if name == "sft" and step.method.divergence is None and step.method.reward is None:
            continue  # the step is fine-tuning already
        kind = "step" if name == "sft" else name
        for part, lower in lowered(program, kind).items():
            label = name if part == kind else f"{name}: {part}"
            measured = measure(lower, chip, _share(program, expected_length))
            expected = _expected(program, kind, part, expected_length)
            results[label] = plan_report.facts(program, measured, chip, expected, prices, part)
            for line in plan_report.lines(label, results[label], chip):
                console.print(line)
    return {"setting": plan_report.setting(step), "programs": results}


def _search(trace, chips, chip, expected_length, prices, console):
    """The step under every mesh and number of microbatches that divide, the fastest first."""
    ranked = []
    for model, microbatches in itertools.product(_divisors(chips), (1, 2, 4, 8, 16)):
        given = {"model_parallelism": model, "microbatches": microbatches}
        try:
            program = trace(**given)
        except ValueError as error:
            if "does not divide" not in str(error):
                raise
            continue
        name, lower = list(lowered(program, "step").items())[-1]  # the update, where it is two
        measured = measure(lower, chip, _share(program, expected_length))
        expected = _expected(program, "step", name, expected_length)
        found = plan_report.facts(program, measured, chip, expected, prices, name)
        ranked.append({**given, "data": chips // model, **found})
        console.print(plan_report.candidate(ranked[-1]))
    if not ranked:
        raise ValueError("no mesh and number of microbatches divides the batch: change BATCH_SIZE")
    ranked.sort(key=lambda one: (not one["fits"], one["seconds"] or float("inf")))
    console.print("\nranked: " + "; ".join(plan_report.name_of(one) for one in ranked))
    return {"candidates": ranked}


def _divisors(number):
    return [size for size in range(1, number + 1) if number % size == 0 and size <= 16]


def _share(program: StepProgram, expected_length: float | int | None) -> float:
    """What a sampling loop runs of its bound."""
    bound = _bound(program)
    if expected_length is None:
        return 1.0
    if not 0 < expected_length <= bound:
        raise ValueError(f"--expected_length is {expected_length}: outputs have at most {bound}")
    return expected_length / bound


def _bound(program):
    return program.method.rollout_length or program.batch.decoder_target_tokens.shape[1]


def _expected(program, kind, part, expected_length) -> Mapping[str, float] | None:
    """Closed-form FLOPs of a whole step on one chip; None for other programs."""
    if kind != "step" or part != "step" or program.judge is not None:
        return None
    length = expected_length or _bound(program)
    return {
        "counted": sum(step_flops(program, length).values()),
        "useful": sum(step_flops(program, length, split=False).values()),
    }
