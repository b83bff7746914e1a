"""The verb `plan`: the memory and time of a run's programs on a TPU slice, compiled without one."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import rich.console

from gkd.configuration import setting_values
from gkd.configuration.experiment import Experiment, Method, Teacher
from gkd.configuration.verb_settings import PLAN
from gkd.configuration.verb_settings import PROGRAMS as PROGRAM_NAMES
from gkd.errors import InvalidValue, MissingFile
from gkd.files.atomic_files import write_json
from gkd.plan import program_report, programs
from gkd.plan.mesh_search import search_meshes
from gkd.program_cost.topologies import topology_chip, topology_devices, topology_slices
from gkd.runs.long_work import long_work
from gkd.runs.provenance import provenance
from gkd.train.build import build_step_program

PROGRAMS = {
    "step": programs.step_programs,
    "sft": functools.partial(programs.step_programs, name="sft"),
    "evaluation": programs.evaluation_programs,
    "generation": programs.generation_programs,
}


def plan(
    experiment: Experiment,
    topology: str,
    mesh: str | None = None,
    programs: str = ",".join(PROGRAM_NAMES),
    expected_length: float | int | None = None,
    price: float | int | None = None,
    search: bool = False,
    output: str | None = None,
) -> dict[str, Any]:
    """Compiles a run's programs for a topology, and prints their memory and roofline times.

    Args:
      experiment: the run to plan.
      topology: the slice, e.g. 'v5e:4x4'; see `topology_devices`.
      mesh: sizes of the mesh axes, e.g. 'data:64,model:4'; by default the run's own.
      programs: names out of `PROGRAMS`, separated by commas.
      expected_length: mean tokens per completion, for the time of sampling; by default the
        greatest length.
      price: price of one chip-hour, in any currency.
      search: compile the training step under every mesh and number of microbatches instead.
      output: path of a JSON file that receives the results.

    Returns:
      The content of the JSON file.

    Raises:
      ValueError: settings contradict one another, or a count of FLOPs cannot be trusted.
      FileNotFoundError: the folder of `output` does not exist.
    """
    setting_values.check_call(PLAN, locals())
    chip = topology_chip(topology)
    devices = topology_devices(topology)
    if devices[0].platform != jax.default_backend():  # cached programs could not be loaded here
        jax.config.update("jax_enable_compilation_cache", False)
    path = output and pathlib.Path(output)
    if path and not path.parent.is_dir():
        raise MissingFile(f"{path.parent} is no folder: {path} cannot be written there")
    if mesh:
        experiment = resized(experiment, _model_axis(mesh, len(devices)))
    build = functools.partial(build_step_program, devices=devices, from_shapes=True)
    console = rich.console.Console(soft_wrap=True, highlight=False)
    prices = {"price": price, "chips": len(devices)}
    result = {"topology": topology, "expected_length": expected_length, **provenance()}

    def report(label, program, planned):
        length = program_report.completion_length(program, expected_length)
        with long_work(f"compiling {label} for {topology}"):
            return program_report.measured(program, planned, chip, length, prices)

    def save(found):
        result.update(found)
        if path:
            write_json(path, result)

    if search:
        slices = topology_slices(topology)
        trace = lambda **sizes: build(resized(experiment, **sizes))  # noqa: E731
        search_meshes(trace, len(devices), slices, report, console.print, save)
    else:
        _measure(build, experiment, _names(programs), report, console.print, save)
    return result


def resized(
    experiment: Experiment, model_parallelism: int, microbatches: int | None = None
) -> Experiment:
    """Returns the experiment on another mesh, with other microbatches where they are given."""
    execution = dataclasses.replace(experiment.execution, model_parallelism=model_parallelism)
    batches = experiment.batches
    if microbatches is not None:
        batches = dataclasses.replace(batches, microbatches=microbatches)
    return dataclasses.replace(experiment, execution=execution, batches=batches)


def fine_tuning(experiment: Experiment) -> Experiment:
    """Returns the fine-tuning (SFT) of the same student on the same data."""
    given = experiment.method
    method = Method(normalisation=given.normalisation, training_task=given.training_task)
    return dataclasses.replace(experiment, method=method, teacher=Teacher())


def _names(programs):
    names = [name for name in programs.split(",") if name]
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown or not names:
        raise InvalidValue(f"--programs is {programs!r}: choose of {', '.join(PROGRAMS)}")
    return names


def _model_axis(mesh: str, chips: int) -> int:
    """Parses the size of the model axis in 'data:64,model:4'; the axes must cover all chips."""
    parts = dict(part.partition(":")[::2] for part in mesh.split(","))
    if not set(parts) <= {"data", "model"} or not all(size.isdigit() for size in parts.values()):
        raise InvalidValue(f"--mesh is {mesh!r}: write it as data:64,model:4")
    model = int(parts.get("model", 1))
    data = int(parts.get("data", chips // max(model, 1)))
    if data * model != chips:
        raise InvalidValue(
            f"--mesh is {mesh!r}: data × model is {data * model}, the chips are {chips}"
        )
    return model


def _measure(build, experiment, names, report, say, save):
    """Compiles every program of one setting, saving after each: the next one may take minutes."""
    with long_work("tracing the step"):
        step = build(experiment)
    say(program_report.heading(step))
    setting, results = program_report.setting(step), {}
    for name in names:
        program = step
        if name == "sft":
            if step.method.divergence is None and step.method.reward is None:
                continue  # the step is fine-tuning already
            program = build(fine_tuning(experiment))
        for label, planned in PROGRAMS[name](program).items():
            results[label] = report(label, program, planned)
            say("\n".join(program_report.lines(label, results[label])))
            save({"setting": setting, "programs": results})
    refused = [label for label, found in results.items() if "refused" in found]
    if refused:
        raise InvalidValue(f"no estimate of {', '.join(refused)}: its FLOPs cannot be trusted")
