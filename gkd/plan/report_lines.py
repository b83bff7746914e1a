"""The lines of text that `plan` prints, from its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gkd.plan.measured_run import MeasuredRun
from gkd.plan.program_report import setting
from gkd.train.step_program import StepProgram

_GIB = 2**30


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
    notes = [*known["whole_on_every_chip"], *known["split_by_rows"]]
    return "\n".join([first, *(f"note: {note}" for note in notes)])


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
    seconds = f"compiled in {estimate['compile_seconds']:.0f} s"
    report.append(f"  {_time(estimate, split)}; {seconds}")
    return report + (_whole_run(estimate["run"]) if "run" in estimate else [])


def _time(estimate, split="") -> str:
    """The range of a program's time."""
    return (
        f"{1e3 * estimate['seconds']:.2f} ms (roofline lower bound{split and f': {split}'}) to "
        f"{1e3 * estimate['seconds_without_overlap']:.2f} ms (without overlap)"
    )


def _whole_run(run) -> list[str]:
    """The range of a run's speed and cost."""
    best, worst = run["roofline_lower_bound"], run["without_overlap"]
    forms = {
        "examples_per_second": "{:.1f} to {:.1f} examples/s", "mfu": "MFU {:.1%} to {:.1%}",
        "chip_hours": "{:.1f} to {:.1f} chip-hours for the run", "price": "price {:.2f} to {:.2f}",
    }  # fmt: skip
    texts = [form.format(best[key], worst[key]) for key, form in forms.items() if key in best]
    return [f"  {', '.join(texts)} (roofline lower bound to without overlap)"]


def beside_measured(run: MeasuredRun, estimate: Mapping[str, Any], topology: str) -> str:
    """Renders a saved run's measured step time beside the estimate of it.

    Args:
      run: the saved run.
      estimate: the record of its step, or of the mean over its batches' lengths.
      topology: name of the planned topology.
    """
    line = (
        f"  measured in {run.directory}: {1e3 * run.seconds:.2f} ms per step on {run.devices}, the "
        f"median of {run.intervals} log intervals"
    )
    if not run.ran_on(topology):
        return f"{line}; not on {topology}, so not comparable"
    return (
        f"{line}: {run.seconds / estimate['seconds']:.2f} times the roofline lower bound, "
        f"{run.seconds / estimate['seconds_without_overlap']:.2f} times the time without overlap"
    )


def lengths_lines(name: str, record: Mapping[str, Any]) -> list[str]:
    """Renders the record of `of_lengths`.

    Args:
      name: name of the step.
      record: the record.
    """
    report = [f"\n{name}, over the lengths of its batches ({record['padding']:.0%} padding):"]
    for shape in record["shapes"]:
        sizes = ", ".join(f"{key} {length_text(x)}" for key, x in shape["lengths"].items())
        time = "no estimate" if shape["seconds"] is None else _time(shape)
        report.append(f"  {sizes}: {shape['share']:.1%} of the batches, {time}")
    if "seconds" in record:
        report.append(f"  mean: {_time(record)}")
    return report + (_whole_run(record["run"]) if "run" in record else [])


def length_text(length: int | Sequence[int]) -> str:
    """Renders the length of a batch, or those of its parts.

    >>> length_text((64, 32, 32, 16))
    '64/32/32/16'
    """
    return str(length) if isinstance(length, int) else "/".join(map(str, length))


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
        line += f", {_time(estimate)}"
    return line + (f"; no estimate: {estimate['refused']}" if "refused" in estimate else "")
