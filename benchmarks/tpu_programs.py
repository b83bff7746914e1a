"""What the programs of a distillation step cost on a TPU slice, compiled here without one.

    python -m benchmarks.tpu_programs [--topology=v5e:4x4] [--mesh=data:16,model:1] [--programs …]

Compiles ahead of time with libtpu (`pip install libtpu`, of the version that jaxlib names): T5 v1.1
XL in bfloat16 teaches T5 v1.1 small, layers stacked, as in configs/runs/xsum/small.gin. Prints a
Markdown table of what one chip does in one step and writes it as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import sys
import time
from typing import Any

import jax

from benchmarks.tpu_models import SMALL, XL, Setting, programs
from gkd.parallel import mesh as meshes
from gkd.parallel.program_cost import program_cost, program_memory
from gkd.parallel.roofline import CHIPS, roofline

_COLUMNS = (
    "program", "temporary MiB", "arguments MiB", "peak MiB", "GFLOP", "multiplier GFLOP", "GB",
    "collectives (count, MB)", "compute ms", "memory ms", "interconnect ms", "roofline ms",
    "one by one ms", "compile s",
)  # fmt: skip
_TIMES = ("compute", "memory", "interconnect", "seconds", "one_by_one")


def main(arguments: list[str]) -> None:
    """Compiles, counts, prints, writes."""
    given = _parser().parse_args(arguments)
    axes = dict(part.split(":") for part in given.mesh.split(","))
    generation = given.topology.split(":")[0]
    if generation not in CHIPS:
        raise ValueError(
            f"--topology is {given.topology}: use one of {', '.join(CHIPS)}, as v5e:4x4"
        )
    devices = topology_devices(given.topology)
    mesh = meshes.make_mesh(int(axes.get("data", 0)), int(axes.get("model", 1)), devices)
    setting = Setting(
        dataclasses.replace(SMALL, dtype=given.student_dtype, remat=given.remat), XL,
        given.rows, given.source, given.target, mesh, meshes.rules_for(given.fully_sharded),
        given.optimizer,
    )  # fmt: skip
    chip = CHIPS[generation]
    print(
        f"{given.topology}, {given.mesh}, {given.rows} rows, {given.source} in, {given.target} "
        f"out, student {given.student_dtype}, {given.optimizer}: per chip and step"
    )
    print("| " + " | ".join(_COLUMNS) + " |\n" + "|---" * len(_COLUMNS) + "|")
    lowered = programs(setting)
    results = {"setting": vars(given), "programs": {}}
    for name in given.programs:
        text_path = given.hlo and pathlib.Path(given.hlo) / f"{name}.hlo"
        result = _measure(lowered[name], chip, given.expected_share, text_path)
        results["programs"][name] = result
        print(_row(name, result), flush=True)
    results["peak process GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of this process: {results['peak process GB']:.1f} GB")
    path = pathlib.Path(given.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def topology_devices(name: str) -> list[Any]:
    """The chips of a slice that is not here, 'v5e:4x4'."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return list(topology.devices)


def _measure(lower, chip, expected_share, text_path):
    """Compiles one program and counts it; leaves its text at a path, if one is given."""
    begin = time.perf_counter()
    compiled = lower().compile()
    seconds = time.perf_counter() - begin
    text = compiled.as_text()
    if text_path:
        text_path.parent.mkdir(parents=True, exist_ok=True)
        text_path.write_text(text)
    cost = program_cost(text, expected_share=expected_share)
    times = roofline(cost, chip)
    return {
        "memory": dataclasses.asdict(program_memory(compiled)),
        "flops": cost.flops,
        "multiplier_flops": cost.multiplier_flops,
        "elementwise": cost.elementwise,
        "bytes": cost.bytes,
        "wire_bytes": cost.wire_bytes,
        "collectives": cost.by_kind(),
        "loops": [dataclasses.asdict(loop) for loop in cost.loops],
        "roofline": {**dataclasses.asdict(times), "seconds": times.seconds},
        "compile_seconds": seconds,
    }


def _row(name, result):
    memory, times = result["memory"], result["roofline"]
    exchanges = [
        f"{kind} {count:.0f}, {size / 1e6:.1f}"
        for kind, (count, size) in sorted(result["collectives"].items())
    ]
    cells = [
        name,
        *(f"{memory[key] / 2**20:.0f}" for key in ("temporaries", "arguments", "peak")),
        *(f"{result[key] / 1e9:.1f}" for key in ("flops", "multiplier_flops", "bytes")),
        "; ".join(exchanges) or "none",
        *(f"{times[key] * 1e3:.2f}" for key in _TIMES),
        f"{result['compile_seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _parser():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu_programs")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--mesh", default="data:16,model:1")
    names = ["sampling", "teacher", "update", "step"]
    parser.add_argument("--programs", nargs="+", default=names, choices=names)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--source", type=int, default=1024)
    parser.add_argument("--target", type=int, default=64)
    parser.add_argument("--student_dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--optimizer", default="adafactor", choices=["adafactor", "adamw"])
    parser.add_argument("--remat", action="store_true", help="the student's layers")
    parser.add_argument("--fully_sharded", action="store_true")
    share = "length of an output, of the greatest: what sampling is expected to run"
    parser.add_argument("--expected_share", type=float, default=1.0, help=share)
    parser.add_argument("--output", default="runs/benchmarks/tpu_programs.json")
    parser.add_argument("--hlo", help="a folder for the compiled programs' texts")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
