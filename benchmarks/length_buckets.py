"""Measures steps on real lengths: examples per second with every kind of LENGTH_BUCKETS.

    python -m benchmarks.length_buckets --gin_file=FILE [--kinds parts] [--steps=20] [--gin.NAME=…]

The same step runs in turn on whole batches (None), in parts and on batches of similar lengths; all
lengths are compiled beforehand. Models whose architecture is given start at random. Where no length
saves padding, it is the same batches.
"""

from __future__ import annotations

import argparse
import sys
import time

import jax

from benchmarks.arguments import parse
from benchmarks.machine import measure, spread
from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.data import pipeline
from gkd.evaluate.evaluation import host_batch
from gkd.parallel import mesh as meshes
from gkd.train.batch_layout import part_sizes
from gkd.train.build import build_step_program
from gkd.train.method import student_generates

KINDS = ("parts", "batches")  # beside None


def main(arguments: list[str]) -> None:
    """Measures and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", type=int, default=20, help="of each kind in a round")
    parser.add_argument("--rounds", type=int, default=5)
    given, overrides = parse(parser, arguments)
    command = Command("train", (given.gin_file,), ("MODEL_DIR='none'", *overrides))
    program = build_step_program(command_line.configured_experiment(command), from_shapes=True)
    compare(program, (None, *given.kinds), given.steps, given.rounds)


def compare(program, kinds: tuple, steps: int, rounds: int) -> None:
    """Times rounds of steps of every kind, and prints medians and their ratios."""
    experiment, compiled = program.experiment, program.compile()
    shapes = experiment.batches
    streams = {
        kind: pipeline.training_batches(
            program.task, shapes.split, shapes.size, shapes.input_length, shapes.target_length, 0,
            buckets=kind, buckets_targets=not student_generates(experiment.method),
            part_sizes=part_sizes(program),
        )
        for kind in kinds
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

    tokens, known = dict.fromkeys(kinds, 0), {}
    for kind in kinds:  # compile every length that the data have
        known[kind] = set()
        while fresh := _lengths_in(streams[kind], 1 if kind is None else 200, known[kind]):
            for host in fresh.values():
                step(host)
            known[kind] |= fresh.keys()
    taken = []
    for _ in range(rounds):
        seconds = {}
        for kind in kinds:
            begin = time.perf_counter()
            for _ in range(steps):
                host = next(streams[kind])
                tokens[kind] += host["positions"] / (host["positions"] - host["padding"])
                step(host)
            seconds[kind] = (time.perf_counter() - begin) / steps
        taken.append(seconds)
    limits = measure()
    print(f"machine: {limits.flops / 1e9:.0f} GFLOP/s, {limits.bandwidth / 1e9:.0f} GB/s")
    for kind in kinds:
        median = spread([seconds[kind] for seconds in taken])["median"]
        ratio = spread([seconds[None] / seconds[kind] for seconds in taken])
        print(
            f"LENGTH_BUCKETS={kind!r}: {1e3 * median:.1f} ms a step, {shapes.size / median:.1f} "
            f"examples/s, {ratio['median']:.2f} times as many as None ({ratio['min']:.2f}–"
            f"{ratio['max']:.2f} in {rounds} rounds), {tokens[kind] / steps / rounds:.2f} "
            f"positions per token, {len(known[kind])} lengths"
        )


def _lengths_in(stream, count: int, known: set) -> dict:
    """A batch of every length among the next ones that is not known."""
    fresh = {}
    for _ in range(count):
        host = next(stream)
        arrays = host["encoder_input_tokens"].shape, host["decoder_target_tokens"].shape
        fresh[(*arrays, host.get("input_parts"), host.get("teacher_input_parts"))] = host
    return {lengths: host for lengths, host in fresh.items() if lengths not in known}


if __name__ == "__main__":
    main(sys.argv[1:])
