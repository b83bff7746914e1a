"""Measures steps on real lengths: examples per second with LENGTH_BUCKETS='auto', and without.

    python -m benchmarks.length_buckets --gin_file=FILE [--steps=20] [--rounds=5] [--gin.NAME=…]

The same step runs in turn on batches of both kinds; every length is compiled beforehand. Models
whose architecture is given start at random. Where no length saves padding, it is the same batches.
"""

from __future__ import annotations

import argparse
import sys
import time

import jax

from benchmarks.arguments import parse
from benchmarks.machine import spread
from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.data import pipeline
from gkd.evaluate.evaluation import host_batch
from gkd.parallel import mesh as meshes
from gkd.train.build import build_step_program
from gkd.train.method import student_generates

KINDS = (None, "auto")


def main(arguments: list[str]) -> None:
    """Measures and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", required=True)
    parser.add_argument("--steps", type=int, default=20, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=5)
    given, overrides = parse(parser, arguments)
    command = Command("train", (given.gin_file,), ("MODEL_DIR='none'", *overrides))
    program = build_step_program(command_line.configured_experiment(command), from_shapes=True)
    compare(program, given.steps, given.rounds)


def compare(program, steps: int, rounds: int) -> None:
    """Times rounds of steps of both kinds, and prints medians and their ratio."""
    experiment, compiled = program.experiment, program.compile()
    shapes = experiment.batches
    streams = {
        kind: pipeline.training_batches(
            program.task, shapes.split, shapes.size, shapes.input_length, shapes.target_length, 0,
            buckets=kind, buckets_targets=not student_generates(experiment.method),
        )
        for kind in KINDS
    }  # fmt: skip
    state = program.state.make()
    teacher = program.frozen_teacher and jax.jit(
        lambda: jax.tree.map(lambda leaf: 0.01 * jax.numpy.ones(leaf.shape, leaf.dtype),
                             program.teacher.shapes),
        out_shardings=program.teacher.shardings,
    )()  # fmt: skip

    def step(host):
        nonlocal state
        batch = meshes.place_batch(host_batch(host), program.mesh)
        state, metrics = compiled(state, teacher, batch)
        return jax.block_until_ready(metrics)

    known, tokens = set(), dict.fromkeys(KINDS, 0)
    while True:  # compile every length that the data have
        fresh = [next(streams["auto"]) for _ in range(200)]
        lengths = {host["encoder_input_tokens"].shape + host["decoder_target_tokens"].shape: host
                   for host in fresh}  # fmt: skip
        if set(lengths) <= known:
            break
        for key in set(lengths) - known:
            step(lengths[key])
        known |= set(lengths)
    step(next(streams[None]))
    taken = []
    for _ in range(rounds):
        seconds = {}
        for kind in KINDS:
            begin = time.perf_counter()
            for _ in range(steps):
                host = next(streams[kind])
                tokens[kind] += host["positions"] / (host["positions"] - host["padding"])
                step(host)
            seconds[kind] = (time.perf_counter() - begin) / steps
        taken.append(seconds)
    for kind in KINDS:
        median = spread([seconds[kind] for seconds in taken])["median"]
        print(
            f"LENGTH_BUCKETS={kind!r}: {1e3 * median:.1f} ms a step, {shapes.size / median:.1f} "
            f"examples/s, {tokens[kind] / steps / rounds:.2f} positions per token"
        )
    ratio = spread([seconds[None] / seconds["auto"] for seconds in taken])
    print(
        f"{len(known)} lengths; {ratio['median']:.2f} times as many examples per second "
        f"({ratio['min']:.2f}–{ratio['max']:.2f} in {rounds} rounds)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
