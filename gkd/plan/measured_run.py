"""The step time that a saved run measured, to stand beside a plan's estimate of it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import statistics

from gkd.runs.metrics_log import read_rows
from gkd.runs.monitor import KINDS, SPEED_FILE
from gkd.runs.run_directory import read_launches

_DEVICES = re.compile(r"(\d+) (.+) \((\w+)\)")  # as `provenance.environment` writes them


@dataclasses.dataclass(frozen=True)
class MeasuredRun:
    """The speed of a run's last launch that logged it.

    Attributes:
      directory: the run directory.
      seconds: median over log intervals of the median step time.
      intervals: number of log intervals.
      devices: number and kind of its devices, as '16 TPU v5 lite (tpu)'.
    """

    directory: str
    seconds: float
    intervals: int
    devices: str

    def ran_on(self, topology: str) -> bool:
        """Returns whether its devices are as many and of the kind of a topology's.

        Args:
          topology: name of a topology, e.g. 'v5e:4x4'.

        >>> MeasuredRun("runs/gkd", 0.05, 3, "16 TPU v5 lite (tpu)").ran_on("v5e:4x4")
        True
        """
        found = _DEVICES.fullmatch(self.devices)
        slices, _, one = topology.rpartition("*")
        generation, _, shape = one.partition(":")
        chips = int(slices or 1)
        for size in shape.split("x"):
            chips *= int(size)
        return bool(found) and (int(found[1]), KINDS.get(found[2], found[2])) == (chips, generation)


def measured_run(directory: str | os.PathLike[str]) -> MeasuredRun | None:
    """Reads the step time of a run; None where the folder holds none, or is no run's.

    Args:
      directory: the run directory.

    Raises:
      InvalidFile: a file of the run is damaged.
    """
    path = pathlib.Path(directory)
    launches = read_launches(path)
    if not launches or not (path / SPEED_FILE).is_file():
        return None
    rows = [row for row in read_rows(path / SPEED_FILE) if "seconds_per_step" in row]
    last = [row for row in rows if row["step"] > (launches[-1].get("continues_from") or 0)]
    if not last:
        return None
    seconds = statistics.median(row["seconds_per_step"] for row in last)
    return MeasuredRun(str(directory), seconds, len(last), launches[-1].get("devices", "unknown"))
