"""Computes the roofline lower bound on the time of a counted program on a chip."""

from __future__ import annotations

import dataclasses
import math

from gkd.program_cost.program_cost import ProgramCost


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peak rates and the capacity of a chip.

    Attributes:
      flops: peak bfloat16 FLOP/s.
      memory: bytes of HBM that programs can use.
      bandwidth: bytes/s between the chip and its HBM.
      interconnect: bytes/s that it can send to other chips of its slice, all links together.
      dcn: bytes/s that it can send to other slices, its share of its host's network; None if not
        published.
    """

    flops: float
    memory: int
    bandwidth: float
    interconnect: float
    dcn: float | None = None


_GIB = 2**30

# Google Cloud TPU documentation, the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (system
# architecture: peak compute, HBM capacity and bandwidth, inter-chip interconnect of a chip, as read
# in 2026). The published interconnect is the sum of both directions (v5e: 400 GB/s); this table
# has half of it. The data-centre network is published per pod of 256 chips (v5e: 6.4 Tbit/s,
# v6e: 25.6) or per chip (v5p: 50 Gbit/s), and not at all for v4.
# The memory is the available HBM that libtpu 0.0.42.1 reports when a program exceeds it: v5e has
# 16 GiB of which programs get 15.75.
CHIPS = {
    # The two cores of a laptop in round numbers, for tests and a look at a program; no forecast.
    "cpu": Chip(1e11, 16 * _GIB, 2e10, 1e10),
    "v4": Chip(275e12, int(30.75 * _GIB), 1200e9, 300e9, None),
    "v5e": Chip(197e12, int(15.75 * _GIB), 819e9, 200e9, 3.125e9),
    "v5p": Chip(459e12, int(95.74 * _GIB), 2765e9, 600e9, 6.25e9),
    "v6e": Chip(918e12, int(31.25 * _GIB), 1638e9, 400e9, 12.5e9),
    # NVIDIA's data sheets of the SXM modules: dense bfloat16, memory and its bandwidth, NVLink (of
    # which the published sum of both directions is halved). JAX reserves three quarters of a GPU's
    # memory for programs (XLA_PYTHON_CLIENT_MEM_FRACTION). A network card is not part of the GPU.
    "a100_40gb": Chip(312e12, int(0.75 * 40 * _GIB), 1555e9, 300e9),
    "a100": Chip(312e12, int(0.75 * 80 * _GIB), 2039e9, 300e9),
    "h100": Chip(989e12, int(0.75 * 80 * _GIB), 3350e9, 450e9),
    "h200": Chip(989e12, int(0.75 * 141e9), 4800e9, 450e9),
}
# Compiled for with as many fake CPU devices: XLA compiles for a GPU only where one is.
ON_FAKE_DEVICES = frozenset({"cpu", "a100_40gb", "a100", "h100", "h200"})


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The time of one execution in seconds; see `roofline`.

    Attributes:
      compute, memory, interconnect: time of each by itself.
      dcn: time of the collectives between slices; 0 also if the chip's DCN bandwidth is unknown.
      no_overlap: time if no two instructions overlap: for each the slower of its compute and
        memory, plus all collectives.
    """

    compute: float
    memory: float
    interconnect: float
    dcn: float
    no_overlap: float

    @property
    def seconds(self) -> float:
        """The lower bound of the whole program: max(compute, memory) + interconnect + dcn."""
        return max(self.compute, self.memory) + self.interconnect + self.dcn


def roofline(cost: ProgramCost, chip: Chip) -> Roofline:
    """Computes max(FLOPs ÷ peak, bytes ÷ HBM bandwidth) + bytes sent ÷ bandwidth of collectives.

    FLOPs are those of matrix products with their bfloat16 passes. Compute and memory are assumed
    to overlap perfectly over the whole program, and collectives not at all; latencies and
    element-wise work on values that stay on the chip are left out.

    Args:
      cost: the cost of a program, from `program_cost`.
      chip: the chip, one of `CHIPS`.

    Returns:
      The terms of the sum, and the time without any overlap between instructions.

    On a chip of 10 FLOP/s and 2 bytes/s, 30 FLOPs and 8 bytes take 4 s, bound by memory; two
    instructions that do not overlap, the FLOPs and the bytes, take 3 s + 4 s:

    >>> from gkd.program_cost.program_cost import Part
    >>> dot = Part("dot", "dot", "", 1.0, 30.0, 30.0, 0.0, 0.0)
    >>> copy = Part("copy", "copy", "", 1.0, 0.0, 0.0, 0.0, 8.0)
    >>> bound = roofline(ProgramCost((dot, copy), (), ()), Chip(10.0, 1, 2.0, 1.0))
    >>> bound.seconds, bound.no_overlap
    (4.0, 7.0)
    """
    interconnect = cost.wire_bytes / chip.interconnect
    dcn = cost.dcn_bytes / chip.dcn if chip.dcn else 0.0
    slower = (
        max(part.multiplier_flops / chip.flops, part.bytes / chip.bandwidth) for part in cost.parts
    )
    return Roofline(
        cost.multiplier_flops / chip.flops,
        cost.bytes / chip.bandwidth,
        interconnect,
        dcn,
        math.fsum(slower) + interconnect + dcn,
    )
