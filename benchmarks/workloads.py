"""Defines the workloads and models of the speed benchmark, and their lower bounds."""

from __future__ import annotations

import dataclasses

VOCABULARY = 32128
USABLE = 32100


@dataclasses.dataclass(frozen=True)
class Size:
    """A T5 v1.1, gated, with its own head."""

    width: int
    heads: int
    head_dim: int
    mlp: int
    layers: int

    @property
    def joined(self) -> int:
        """Number of heads times their width."""
        return self.heads * self.head_dim


STUDENT = Size(512, 6, 64, 1024, 8)  # small
TEACHER = Size(768, 12, 64, 2048, 12)  # base


@dataclasses.dataclass(frozen=True)
class Workload:
    """Lengths of prompts and completions in tokens; no padding, no early end."""

    source: int
    target: int


WORKLOADS = {"xsum-lite": Workload(256, 64), "gsm-lite": Workload(128, 128)}
CHATS = {"chats": Workload(128, 128)}  # of decoder-only models


@dataclasses.dataclass(frozen=True)
class Machine:
    """Measured limits: FLOP/s of a float32 matrix product, bytes per second read."""

    flops: float
    bandwidth: float


def encoder_flops(size: Size, rows: int, source: int) -> float:
    """FLOPs of encoding the prompts: layers and attention."""
    layer = 4 * size.width * size.joined + 3 * size.width * size.mlp
    attention = 2 * source * size.joined
    return 2.0 * rows * source * size.layers * (layer + attention)


def cross_flops(size: Size, rows: int, source: int) -> float:
    """FLOPs of the keys and values for cross-attention."""
    return 2.0 * rows * source * size.layers * 2 * size.width * size.joined


def decoder_flops(size: Size, rows: int, work: Workload) -> float:
    """FLOPs of the decoder and its head on whole completions, half of causal attention."""
    layer = 6 * size.width * size.joined + 3 * size.width * size.mlp
    attention = 2 * size.joined * (work.target / 2 + work.source)
    token = size.layers * (layer + attention) + size.width * VOCABULARY
    return 2.0 * rows * work.target * token


def sampling_seconds(size: Size, rows: int, work: Workload, machine: Machine) -> float:
    """Computes the lower bound of sampling: the encoder at full speed, then tokens bound by memory.

    A token reads the decoder's weights, its head, the prompts' keys and values and half of the
    cache (on average), each once.
    """
    prompts = encoder_flops(size, rows, work.source) + cross_flops(size, rows, work.source)
    layer = 6 * size.width * size.joined + 3 * size.width * size.mlp
    weights = size.layers * layer + size.width * VOCABULARY
    states = 2 * size.layers * rows * size.joined * (work.source + work.target / 2)
    reading = 4.0 * (weights + states) / machine.bandwidth
    computing = decoder_flops(size, rows, work) / work.target / machine.flops
    return prompts / machine.flops + work.target * max(reading, computing)


def step_seconds(rows: int, work: Workload, machine: Machine) -> float:
    """Computes the lower bound of an on-policy step: sampling, the teacher, the update.

    The student's prompts are encoded once for sampling and loss; backward costs twice forward;
    AdamW reads and writes parameters, gradients and two moments.
    """

    def forward(size):
        prompts = encoder_flops(size, rows, work.source) + cross_flops(size, rows, work.source)
        return prompts + decoder_flops(size, rows, work)

    prompts = encoder_flops(STUDENT, rows, work.source)
    layers = 14 * STUDENT.width * STUDENT.joined - 4 * STUDENT.width * STUDENT.joined
    parameters = STUDENT.layers * (layers + 6 * STUDENT.width * STUDENT.mlp)
    parameters += 2 * STUDENT.width * VOCABULARY
    sampling = sampling_seconds(STUDENT, rows, work, machine) - prompts / machine.flops
    update = 7 * 4.0 * parameters / machine.bandwidth
    return sampling + (forward(TEACHER) + 3 * forward(STUDENT)) / machine.flops + update
