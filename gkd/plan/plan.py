"""The verb `plan`: the memory and time of a run's programs on a TPU slice, compiled without one."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import rich.console

from gkd.configuration import setting_values
from gkd.configuration.experiment import Experiment
from gkd.configuration.verb_settings import PLAN
from gkd.configuration.verb_settings import PROGRAMS as PROGRAM_NAMES
from gkd.errors import InvalidValue
from gkd.files.atomic_files import check_folder_of, make_folder_of, write_json
from gkd.plan import batch_lengths, program_report, report_lines
from gkd.plan.mesh_search import search_meshes
from gkd.plan.program_reports import PROGRAMS, ProgramReports
from gkd.program_cost.roofline import ON_FAKE_DEVICES
from gkd.program_cost.topologies import topology_chip, topology_devices, topology_slices
from gkd.runs.long_work import long_work
from gkd.runs.model_loading import standing_for
from gkd.runs.provenance import provenance
from gkd.train.batch_layout import saves_padding
from gkd.train.build import build_step_program
from gkd.train.model_flops import sampled_steps
from gkd.train.setting_checks import check_experiment


def plan(
    experiment: Experiment,
    topology: str,
    mesh: str | None = None,
    programs: str = ",".join(PROGRAM_NAMES),
    expected_length: float | int | None = None,
    price: float | int | None = None,
    lengths: str | None = None,
    measured: str | None = None,
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
      lengths: source of the training rows' lengths, for LENGTH_BUCKETS: the step is compiled for
        every length of batches and averaged over them; 'data', a file of histograms, or the
        inputs' mean length, see `batch_lengths.row_lengths`; None plans for the greatest lengths.
      measured: a run directory, whose measured step time is put beside the estimate.
      search: compile the training step under every mesh and number of microbatches instead.
      output: path of a JSON file that receives the results.

    Returns:
      The content of the JSON file.

    Raises:
      ValueError: settings contradict one another, or a count of FLOPs cannot be trusted.
      NotADirectoryError: what would be the folder of `output` is a file.
    """
    setting_values.check_call(PLAN, locals())
    check_experiment(experiment)
    chip = topology_chip(topology)
    devices = topology_devices(topology)
    if devices[0].platform != jax.default_backend():  # cached programs could not be loaded here
        jax.config.update("jax_enable_compilation_cache", False)
    check_folder_of(pathlib.Path(output or "plan.json"))
    if mesh:
        experiment = resized(experiment, _model_axis(mesh, len(devices)))
    build = functools.partial(build_step_program, devices=devices, from_shapes=True)
    console = rich.console.Console(soft_wrap=True, highlight=False)
    prices = {"price": price, "chips": len(devices)}
    result = {"topology": topology, "expected_length": expected_length, **provenance()}
    rows = _rows(experiment, lengths, search)
    if rows is not None:
        result["lengths"] = batch_lengths.histograms(rows)

    def report(label, program, planned):
        length = program_report.completion_length(program, expected_length)
        with long_work(f"compiling {label} for {topology}"):
            return program_report.measured(program, planned, chip, length, prices)

    def save(found):
        result.update(found)
        if output:
            make_folder_of(pathlib.Path(output))
            write_json(pathlib.Path(output), result)

    with standing_for("gpu" if _is_gpu(topology) else None):
        if search:
            slices = topology_slices(topology)
            trace = lambda **sizes: build(resized(experiment, **sizes))  # noqa: E731
            search_meshes(trace, len(devices), slices, report, console.print, save)
            return result
        names = _names(programs)
        with long_work("tracing the step"):
            step = build(experiment)
        console.print(report_lines.heading(step))
        console.print(*_notes(step, topology, lengths), sep="", end="")
        planning = ProgramReports(step, build, report, rows, chip, prices, console.print, save)
        planning.measure(names)
        planning.compare(measured, topology)
    planning.refuse()
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


def _names(programs):
    names = [name for name in programs.split(",") if name]
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown or not names:
        raise InvalidValue(f"--programs is {programs!r}: choose of {', '.join(PROGRAMS)}")
    return names


def _model_axis(mesh: str, chips: int) -> int:
    """Parses the size of the model axis in 'data:64,model:4'; the axes must cover all chips."""
    parts = dict(part.partition(":")[::2] for part in mesh.split(","))
    if not set(parts) <= {"data", "model"} or not all(size.isdecimal() for size in parts.values()):
        raise InvalidValue(f"--mesh is {mesh!r}: write it as data:64,model:4")
    model = int(parts.get("model", 1))
    data = int(parts.get("data", chips // max(model, 1)))
    if data * model != chips:
        raise InvalidValue(
            f"--mesh is {mesh!r}: data × model is {data * model}, the chips are {chips}"
        )
    return model


def _rows(experiment, lengths, search) -> dict[str, Any] | None:
    """The lengths of the training rows; None for the greatest."""
    if lengths is None:
        return None
    if search:
        raise InvalidValue("--search ranks meshes for the greatest lengths: leave --lengths out")
    return batch_lengths.row_lengths(experiment, lengths)


def _is_gpu(topology):
    return topology.partition(":")[0] in ON_FAKE_DEVICES - {"cpu"}


def _notes(step, topology, lengths) -> list[str]:
    """Lines about what the figures leave out."""
    notes, share = [], sampled_steps(step)
    if 0 < share < 1:
        notes.append(
            f"note: the student samples {share:.0%} of the sequences in the mean: times and MFU "
            "are means over the steps, FLOPs and traffic those of a step that samples\n"
        )
    if _is_gpu(topology):
        notes.append(
            "note: compiled by XLA's CPU compiler, which widens bfloat16 to float32: memory and "
            f"traffic are overestimates for {topology}\n"
        )
    if lengths is None and saves_padding(step):
        notes.append(
            "note: batches of shorter rows take less than this (LENGTH_BUCKETS): say how long the "
            "rows are, --lengths=data, a file of histograms or a mean\n"
        )
    return notes
