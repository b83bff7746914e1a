"""The least time that a counted program can take on a chip."""

from __future__ import annotations

import dataclasses
import math

from gkd.program_cost.program_cost import ProgramCost


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do.

    Attributes:
      flops: peak bfloat16 FLOP/s.
      memory: bytes of HBM that programs can use.
      bandwidth: of HBM, bytes/s.
      interconnect: bytes/s that it can send to other chips of its slice, all links together.
      network: bytes/s that it can send to other slices, its share of what its host can; None where
        that is not published.
    """

    flops: float
    memory: int
    bandwidth: float
    interconnect: float
    dcn: float | None = None


_GIB = 2**30

# Google Cloud TPU documentation, the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" (system
# architecture: peak compute, HBM capacity and bandwidth, inter-chip interconnect of a chip, as read
# in 2026). The interconnect is said in both directions (v5e: 400 GB/s); half of it is here. The
# data centre's network is said of a pod of 256 chips (v5e: 6.4 Tbit/s, v6e: 25.6) or of a chip
# (v5p: 50 Gbit/s), of v4 not at all.
# Memory is what libtpu 0.0.42.1 calls the available HBM when a program exceeds it: v5e has 16 GiB
# of which programs get 15.75.
CHIPS = {
    # A laptop's two cores, in round numbers: for tests and for a look at a program, no forecast.
    "cpu": Chip(1e11, 16 * _GIB, 2e10, 1e10),
    "v4": Chip(275e12, int(30.75 * _GIB), 1200e9, 300e9, None),
    "v5e": Chip(197e12, int(15.75 * _GIB), 819e9, 200e9, 3.125e9),
    "v5p": Chip(459e12, int(95.74 * _GIB), 2765e9, 600e9, 6.25e9),
    "v6e": Chip(918e12, int(31.25 * _GIB), 1638e9, 400e9, 12.5e9),
}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one execution; see `roofline`.

    Attributes:
      compute, memory, interconnect: what each takes by itself.
      network: exchanges between slices; 0 also where the chip's bandwidth is not known.
      one_by_one: if no two instructions overlap, each as long as the slower of its compute and
        memory, and the exchanges.
    """

    compute: float
    memory: float
    interconnect: float
    dcn: float
    no_overlap: float

    @property
    def seconds(self) -> float:
        """The bound of the whole program: max(compute, memory) + interconnect + network."""
        return max(self.compute, self.memory) + self.interconnect + self.dcn


def roofline(cost: ProgramCost, chip: Chip) -> Roofline:
    """Seconds = max(FLOPs ÷ peak, bytes ÷ HBM bandwidth) + bytes sent ÷ bandwidth of the exchanges.

    FLOPs are those of matrix products with their bfloat16 passes. Compute and memory are taken to
    overlap perfectly over the whole program, exchanges not at all; latencies and element-wise work
    on values that stay on the chip are left out.

    Args:
      cost: from `program_cost`.
      chip: one of `CHIPS`.

    Returns:
      Its terms, and what a chip without any overlap between instructions would take.
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
