"""How fast a run goes: rates, MFU, goodput, memory; traces on request; a stall is reported."""

from __future__ import annotations

import json
import pathlib
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
# `device_kind` of jax.Device, as libtpu spells it.
_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"}
_KINDS |= {"TPU v6 lite": "v6e", "TPU v6e": "v6e"}


class Monitor:
    """Measures a launch; `speed.jsonl` has what differs between equal runs, `metrics.jsonl` not.

    A row a log interval: seconds_per_step (median), steps_per_second, tokens_per_second (of the
    sequences learnt from), goodput (share of the launch's time that went into steps), where the
    chip is known mfu, where the device says so memory_peak_bytes and memory_limit_bytes, and where
    the parts of a step were timed update_seconds, which is what they leave.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        step_flops: Callable[[float], float] | None = None,
        profile_steps: tuple[int, int] | None = None,
        stall_seconds: float | int = 600,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the launch's clock.

        Args:
          directory: of the run.
          step_flops: useful FLOPs of a step on one chip by the mean length of what was sampled, 0
            where nothing was; without it there is no MFU.
          profile_steps: first and last step of a `jax.profiler` trace, in `profile/`.
          stall_seconds: a step that has not ended after so long is reported; 0 never.
          clock: gives seconds.

        Raises:
          ValueError: profile_steps are not a range of steps.
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
        self._tokens = 0
        self._part_seconds: float | None = None
        self._chip = chip_of(jax.devices()[0])
        self._stall_seconds = stall_seconds
        self._doing, self._since, self._told = "start", clock(), 0.0
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
            # It may hold the last reference to JAX arrays, and Python aborts where a daemon thread
            # frees those while the interpreter shuts down.
            self._watcher.join()
            self._watcher = None
        self._stop_trace()

    def begins(self, what: str, step: int | None = None) -> None:
        """Says what the run does from now on: 'step', …; a trace begins with a step."""
        self._doing = what if step is None else f"{what} {step}"
        self._since, self._told = self._clock(), 0.0
        if self._profile and what == "step" and self._profile[0] <= step <= self._profile[1]:
            self._start_trace()

    def step_ended(self, step: int, seconds: float | None, tokens: int) -> None:
        """Counts a step.

        Args:
          step: its number.
          seconds: since the step before; None after a pause, which says nothing of a step.
          tokens: that it learnt from.
        """
        if seconds is not None:
            self._seconds.append(seconds)
            self._in_steps += seconds
            self._tokens += tokens
        if self._tracing and step >= self._profile[1]:
            self._stop_trace()

    def write_parts(self, step: int, parts: Mapping[str, float]) -> None:
        """Writes how long the parts of a step take by themselves, see `part_times`."""
        self._part_seconds = sum(parts.values())
        self.write_row({"step": step, **parts})

    def write(self, step: int, sampled_length: float = 0.0) -> dict[str, Any]:
        """Writes the row of an interval; the job's first process does.

        Args:
          step: the last of the interval.
          sampled_length: mean tokens of a row that the student wrote, 0 where it wrote none.

        Returns:
          The row; empty where no step was measured.
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
            row["mfu"] = self._step_flops(sampled_length) / median / self._chip.flops
        used = jax.local_devices()[0].memory_stats() or {}
        for name, key in (("peak", "peak_bytes_in_use"), ("limit", "bytes_limit")):
            if key in used:
                row[f"memory_{name}_bytes"] = used[key]
        if self._part_seconds is not None:
            row["update_seconds"] = max(0.0, median - self._part_seconds)
        self._seconds, self._tokens = [], 0
        self.write_row(row)
        return row

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Appends to `speed.jsonl`."""
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
        """Reports, again after twice the time, what does not end."""
        while not self._ended.wait(min(1.0, self._stall_seconds / 4)):
            waited = self._clock() - self._since
            if waited > max(self._stall_seconds, 2 * self._told):
                self._told = waited
                print(
                    f"gkd: warning: {self._doing} has not ended after {waited:.0f} s; the process "
                    f"is at {_place(thread)}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip


def described(row: Mapping[str, Any]) -> str:
    """What of a row a progress line has not: `goodput 93%  MFU 41.2%  memory 12.3/16.0 GB`."""
    parts = [f"goodput {row['goodput']:.0%}"] if row else []
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    if "memory_peak_bytes" in row:
        limit = row.get("memory_limit_bytes")
        of = "" if limit is None else f"/{limit / 1e9:.1f}"
        parts.append(f"memory {row['memory_peak_bytes'] / 1e9:.1f}{of} GB")
    return "  ".join(parts)


def chip_of(device: Any) -> Chip | None:
    """What a device can do; None where it is not in the table."""
    return CHIPS.get(_KINDS.get(device.device_kind, ""))


def _place(thread: int) -> str:
    """Where a thread is: its innermost line of GKD, and the innermost of all."""
    frames = traceback.extract_stack(sys._current_frames()[thread])
    own = [frame for frame in frames if "/gkd/" in frame.filename] or frames
    inner = [own[-1], *([frames[-1]] if frames[-1] is not own[-1] else [])]
    return ", in ".join(f"{frame.filename}:{frame.lineno} ({frame.name})" for frame in inner)
