"""Measures the speed of a run: rates, MFU, goodput, memory; records traces, and reports stalls."""

from __future__ import annotations

import collections
import json
import pathlib
import resource
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax

from gkd.errors import InvalidValue
from gkd.files.atomic_files import append_lines
from gkd.parallel import processes
from gkd.program_cost.roofline import CHIPS, Chip

SPEED_FILE = "speed.jsonl"
PROFILE_FOLDER = "profile"
_KILOBYTE = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
# Generation of a chip, by `device_kind` of jax.Device as libtpu and CUDA spell it.
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"}
KINDS |= {"TPU v6 lite": "v6e", "TPU v6e": "v6e"}
KINDS |= {"NVIDIA A100-SXM4-40GB": "a100_40gb", "NVIDIA A100-SXM4-80GB": "a100"}
KINDS |= {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200"}


class Monitor:
    """Measures a launch, and writes `speed.jsonl`, whose values differ between equal runs.

    It has one row per log interval: seconds_per_step (median), steps_per_second, tokens_per_second
    (tokens of the training sequences), goodput (share of the launch's time spent in steps), mfu for
    known chips, memory_peak_bytes and memory_limit_bytes if the device reports them,
    host_memory_peak_bytes (of this process), and update_seconds (the remainder of a step) if the
    parts of a step were timed.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        step_flops: Callable[[float, Any], float] | None = None,
        profile_steps: tuple[int, int] | None = None,
        stall_seconds: float | int = 600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the launch's clock.

        Args:
          directory: path of the run directory.
          step_flops: function of the mean length of samples (0 without samples) and the shapes of
            a batch to the useful FLOPs of a step on one chip; None for no MFU.
          profile_steps: first and last step of a `jax.profiler` trace, in `profile/`.
          stall_seconds: duration in seconds after which an unfinished step is reported; 0 for
            never.
          clock: function that returns seconds.

        Raises:
          ValueError: profile_steps are no range of steps.
        """
        if profile_steps and not 1 <= profile_steps[0] <= profile_steps[1]:
            raise InvalidValue(
                f"PROFILE_STEPS is {profile_steps}: give the first and the last step"
            )
        self._directory, self._step_flops = directory, step_flops
        self._profile, self._tracing = profile_steps, False
        self._clock, self._begin = clock, clock()
        self._in_steps = 0.0
        self._seconds: list[float] = []
        self._batches: list[Any] = []  # of the same steps
        self._tokens = 0
        self._part_seconds: float | None = None
        self._chip = chip_of(jax.devices()[0])
        self._stall_seconds = stall_seconds
        self._activity, self._since, self._reported = "start", clock(), 0.0
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Monitor:
        if self._stall_seconds:
            main = threading.get_ident()
            self._watcher = threading.Thread(target=self._watch, args=(main,), daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._watcher is not None:
            # It may hold the last reference to JAX arrays, and Python aborts if a daemon thread
            # frees those while the interpreter shuts down.
            self._watcher.join()
            self._watcher = None
        self._stop_trace()

    def begins(self, what: str, step: int | None = None) -> None:
        """Records the beginning of an activity, and starts a trace if its step is reached.

        Args:
          what: name of the activity: 'step', …
          step: number of the step.
        """
        self._activity = what if step is None else f"{what} {step}"
        self._since, self._reported = self._clock(), 0.0
        if self._profile and what == "step" and self._profile[0] <= step <= self._profile[1]:
            self._start_trace()

    def step_ended(self, step: int, seconds: float | None, tokens: int, batch: Any = None) -> None:
        """Counts a step.

        Args:
          step: number of the step.
          seconds: time since the end of the step before; None after a pause.
          tokens: number of tokens of its training sequences.
          batch: shapes of its batch, the same object for all batches of these shapes.
        """
        if seconds is not None:
            self._batches.append(batch)
            self._seconds.append(seconds)
            self._in_steps += seconds
            self._tokens += tokens
        if self._tracing and step >= self._profile[1]:
            self._stop_trace()

    def write_parts(self, step: int, parts: Mapping[str, float]) -> None:
        """Writes the separately measured times of a step's parts, see `part_times`.

        Args:
          step: number of the step.
          parts: seconds by part.
        """
        self._part_seconds = sum(parts.values())
        self.write_row({"step": step, **parts})

    def write(self, step: int, sampled_length: float = 0.0) -> dict[str, Any]:
        """Writes the row of an interval, in the primary process of the job.

        Args:
          step: last step of the interval.
          sampled_length: mean length of the student's samples in tokens, 0 without samples.

        Returns:
          The row; empty if no step was measured.
        """
        if not self._seconds:
            return {}
        total, median = sum(self._seconds), statistics.median(self._seconds)
        row: dict[str, Any] = {
            "step": step, "seconds_per_step": median, "steps_per_second": 1 / median,
            "tokens_per_second": self._tokens / total,
            "goodput": self._in_steps / (self._clock() - self._begin),
        }  # fmt: skip
        if self._chip is not None and self._step_flops is not None:
            row["mfu"] = self._flops(sampled_length) / total / self._chip.flops
        used = jax.local_devices()[0].memory_stats() or {}
        for name, key in (("peak", "peak_bytes_in_use"), ("limit", "bytes_limit")):
            if key in used:
                row[f"memory_{name}_bytes"] = used[key]
        row["host_memory_peak_bytes"] = (
            _KILOBYTE * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        if self._part_seconds is not None:
            row["update_seconds"] = max(0.0, median - self._part_seconds)
        self._seconds, self._batches, self._tokens = [], [], 0
        self.write_row(row)
        return row

    def _flops(self, sampled_length: float) -> float:
        """Useful FLOPs of the interval's steps."""
        shapes = {id(batch): batch for batch in self._batches}
        counts = collections.Counter(map(id, self._batches))
        return sum(
            count * self._step_flops(sampled_length, shapes[key]) for key, count in counts.items()
        )

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Appends a row to `speed.jsonl`, in the primary process of the job."""
        if processes.is_primary_process():
            append_lines(self._directory / SPEED_FILE, json.dumps(row) + "\n")

    def _start_trace(self) -> None:
        if not self._tracing:
            jax.profiler.start_trace(str(self._directory / PROFILE_FOLDER))
            self._tracing = True

    def _stop_trace(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def _watch(self, thread: int) -> None:
        """Reports an activity that does not end, and again after twice the time."""
        while not self._ended.wait(min(1.0, self._stall_seconds / 4)):
            waited = self._clock() - self._since
            if waited > max(self._stall_seconds, 2 * self._reported):
                self._reported = waited
                print(
                    f"gkd: warning: {self._activity} has not ended after {waited:.0f} s; the "
                    f"process is at {_place(thread)}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip


def described(row: Mapping[str, Any]) -> str:
    """Renders a row for the progress line: `goodput 93%  MFU 41.2%  memory 12.3/16.0 GB`.

    Args:
      row: row of `speed.jsonl`, may be empty.

    >>> described({"goodput": 0.93, "mfu": 0.412})
    'goodput 93%  MFU 41.2%'
    """
    parts = [f"goodput {row['goodput']:.0%}"] if row else []
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    if "memory_peak_bytes" in row:
        limit = row.get("memory_limit_bytes")
        of = "" if limit is None else f"/{limit / 1e9:.1f}"
        parts.append(f"memory {row['memory_peak_bytes'] / 1e9:.1f}{of} GB")
    return "  ".join(parts)


def chip_of(device: Any) -> Chip | None:
    """Looks up the peak rates of a device; None if it is not in the table.

    Args:
      device: a `jax.Device`.
    """
    return CHIPS.get(KINDS.get(device.device_kind, ""))


def _place(thread: int) -> str:
    """The position of a thread: its innermost line in gkd, and its innermost line of all."""
    frames = traceback.extract_stack(sys._current_frames()[thread])
    in_gkd = [frame for frame in frames if "/gkd/" in frame.filename] or frames
    inner = [in_gkd[-1], *([frames[-1]] if frames[-1] is not in_gkd[-1] else [])]
    return ", in ".join(f"{frame.filename}:{frame.lineno} ({frame.name})" for frame in inner)
