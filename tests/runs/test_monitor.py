"""The monitor: its rows by hand, a trace on disk, a stalled step told with its place."""

import json
import pathlib
import re
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from gkd.program_cost.roofline import CHIPS, Chip
from gkd.runs import monitor
from gkd.runs.monitor import Monitor


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def rows(folder):
    return [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]


def test_a_row_is_of_its_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "chip_of", lambda device: Chip(1000.0, 1, 1.0, 1.0))
    clock = Clock()
    short, long = [1], [2]  # batches of two lengths, of which the longer costs 20 more

    def flops(length, batch):
        return 50.0 + length + (20.0 if batch is long else 0.0)

    watched = Monitor(tmp_path, flops, stall_seconds=0, clock=clock)
    for step, seconds in enumerate((None, 0.5, 0.25, 0.25), start=1):
        watched.step_ended(step, seconds, 30, long if step == 2 else short)
    clock.now += 4.0  # the rest went into compiling
    watched.write(4, sampled_length=10.0)
    watched.step_ended(5, 2.0, 8)
    clock.now += 2.0
    watched.write(5)
    watched.write(5)  # nothing new
    first, second = rows(tmp_path)
    status = pathlib.Path("/proc/self/status").read_text()
    most = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # may have grown since
    assert 0.9 * most < first.pop("host_memory_peak_bytes") <= most
    assert first == {
        "step": 4, "seconds_per_step": 0.25, "steps_per_second": 4.0, "tokens_per_second": 90.0,
        "goodput": 0.25, "mfu": (80 + 60 + 60) / 1.0 / 1000,
    }  # fmt: skip
    assert second["goodput"] == 0.5 and second["tokens_per_second"] == 4.0
    assert second["mfu"] == 50 / 2 / 1000


def test_the_update_is_what_the_parts_leave(tmp_path):
    watched = Monitor(tmp_path, stall_seconds=0)
    watched.write_parts(0, {"sampling_seconds": 0.25, "teacher_seconds": 0.125})
    watched.step_ended(2, 1.0, 1)
    row = watched.write(2)
    assert row["update_seconds"] == 0.625 and rows(tmp_path)[1] == row
    assert rows(tmp_path)[0] == {"step": 0, "sampling_seconds": 0.25, "teacher_seconds": 0.125}


def test_a_progress_line_says_what_is_known():
    row = {"goodput": 0.934, "mfu": 0.4125}
    assert monitor.described(row) == "goodput 93%  MFU 41.2%"
    row |= {"memory_peak_bytes": 12_345_000_000}
    assert monitor.described(row) == "goodput 93%  MFU 41.2%  memory 12.3 GB"
    row |= {"memory_limit_bytes": 17_179_869_184}
    assert monitor.described(row).endswith("memory 12.3/17.2 GB")
    assert monitor.described({}) == ""


def test_a_chip_is_known_by_its_kind():
    class Device:
        device_kind = "TPU v5 lite"

    assert monitor.chip_of(Device) is CHIPS["v5e"]
    Device.device_kind = "NVIDIA H100 80GB HBM3"
    assert monitor.chip_of(Device) is CHIPS["h100"]
    assert monitor.chip_of(jax.devices()[0]) is None


def test_a_trace_of_the_steps_asked_for(tmp_path):
    with Monitor(tmp_path, profile_steps=(2, 3)) as watched:
        for step in range(1, 5):
            watched.begins("step", step)
            jax.block_until_ready(jnp.ones(3) + step)
            assert watched._tracing == (step in (2, 3))
            watched.step_ended(step, 0.1, 1)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_trace_of_what_is_left_after_a_resume(tmp_path):
    with Monitor(tmp_path, profile_steps=(2, 4)) as watched:
        for step in (3, 4, 5):
            watched.begins("step", step)
            assert watched._tracing == (step < 5)
            watched.step_ended(step, 0.1, 1)


@pytest.mark.parametrize("wrong", [(3, 2), (0, 1)])
def test_wrong_steps_to_trace_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="PROFILE_STEPS"):
        Monitor(tmp_path, profile_steps=wrong)


def test_a_stalled_step_is_told_with_its_place(tmp_path, capfd):
    stalled = threading.Event()
    with Monitor(tmp_path, stall_seconds=0.2) as watched:
        watched.begins("step", 7)
        stalled.wait(1.5)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("gkd: warning: step 7 has not ended after 0 s; the process is at ")
    assert "(wait)" in lines[0]
    assert 1 <= len(lines) <= 3  # after .2, .4 and .8 s or later


def test_a_step_that_goes_on_is_not_told(tmp_path, capfd):
    with Monitor(tmp_path, stall_seconds=0.5) as watched:
        for step in range(8):
            watched.begins("step", step)
            time.sleep(0.1)
    assert capfd.readouterr().err == ""


def test_the_thread_that_watches_ends_with_the_run(tmp_path):
    looked = threading.Event()

    def slow_clock():
        if threading.current_thread() is not threading.main_thread():
            looked.set()
            time.sleep(0.3)
        return time.monotonic()

    before = set(threading.enumerate())
    with Monitor(tmp_path, stall_seconds=0.2, clock=slow_clock):
        assert looked.wait(10)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("parts", [True, False])
def test_a_run_writes_its_speed_and_its_parts(tmp_path, parts, capfd, one_device):
    from gkd.cli import command_line
    from tests.paths import TINY

    options = ["TRAIN_STEPS=4", "LOG_EVERY=2", f"TIME_PARTS={parts}", "EVALUATION_EXAMPLES=16"]
    options += [f'MODEL_DIR="{tmp_path}"', "experiment.Execution.tensorboard=False"]
    arguments = ["train", f"--gin_file={TINY}", *(f"--gin.{text}" for text in options)]
    assert command_line.main(arguments) == 0
    written = rows(tmp_path)
    shown = capfd.readouterr().err
    assert re.search(r"4/4 .* steps/s .* tokens/s  goodput \d+%", shown)
    assert ("a step's parts by themselves: sampling " in shown) == parts
    if parts:
        assert written.pop(0).keys() == {"step", "sampling_seconds"}
    assert all(("update_seconds" in row) == parts for row in written)
    assert [row["step"] for row in written] == [2, 4]
    assert all(0 < row["goodput"] < 1 and row["steps_per_second"] > 0 for row in written)
