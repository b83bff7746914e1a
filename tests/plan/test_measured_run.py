"""Step times of saved runs, by hand."""

import dataclasses
import json

import pytest

from gkd.errors import InvalidFile
from gkd.plan.measured_run import MeasuredRun, measured_run
from tests.plan.planning import plan


def saved(folder, seconds, devices="1 cpu (cpu)"):
    launches = [{"continues_from": 0, "devices": "9 cpu (cpu)"}]
    launches += [{"continues_from": 10, "devices": devices}]
    for launch in launches:
        launch |= {"started": "2026-01-01", "bindings": {}, "command_line": []}
    (folder / "launches.jsonl").write_text("".join(json.dumps(row) + "\n" for row in launches))
    rows = [{"step": 10, "seconds_per_step": 100.0}, {"step": 11, "gkd_sampling": 1.0}]
    rows += [{"step": 20 + i, "seconds_per_step": x} for i, x in enumerate(seconds)]
    (folder / "speed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_last_launch_counts(tmp_path):
    found = measured_run(saved(tmp_path, [3.0, 1.0, 2.5]))
    assert found == MeasuredRun(str(tmp_path), 2.5, 3, "1 cpu (cpu)")
    assert measured_run(tmp_path / "none") is None
    assert measured_run(saved(tmp_path, [])) is None


def test_a_launch_that_does_not_say_where_it_began_began_at_zero(tmp_path):
    launches = saved(tmp_path, [3.0, 1.0, 2.5]) / "launches.jsonl"
    rows = [json.loads(line) for line in launches.read_text().splitlines()]
    del rows[-1]["continues_from"]
    launches.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert dataclasses.astuple(measured_run(tmp_path))[1:3] == (2.75, 4)  # the one of 100 s too


@pytest.mark.parametrize(
    ("devices", "topology", "same"),
    [
        ("16 TPU v5 lite (tpu)", "v5e:4x4", True),
        ("32 TPU v5 lite (tpu)", "2*v5e:4x4", True),
        ("16 TPU v5 lite (tpu)", "v5e:4x8", False),
        ("16 TPU v4 (tpu)", "v5e:4x4", False),
        ("1 cpu (cpu)", "cpu:1", True),
        ("unknown", "cpu:1", False),
    ],
)
def test_only_equal_devices_are_compared(devices, topology, same):
    assert MeasuredRun("run", 1.0, 1, devices).ran_on(topology) == same


def test_a_plan_puts_the_measured_time_beside_its_estimate(capsys, tmp_path):
    options = ("--topology=cpu:1", "--programs=step", f"--output={tmp_path}/plan.json")
    run = f"--gin.MODEL_DIR='{saved(tmp_path, [3.0])}'"
    said = plan(capsys, *options, run)
    step = json.loads((tmp_path / "plan.json").read_text())["programs"]["step"]
    assert "3000.00 ms per step on 1 cpu (cpu), the median of 1 log intervals: " in said
    assert f"{3 / step['seconds']:.2f} times the roofline lower bound" in said
    assert f"{3 / step['seconds_without_overlap']:.2f} times the time without overlap" in said
    saved(tmp_path, [3.0], devices="4 TPU v4 (tpu)")
    assert "not on cpu:1, so not comparable" in plan(capsys, *options, run)
    (tmp_path / "speed.jsonl").write_text("half\n{}\n")
    with pytest.raises(InvalidFile):
        measured_run(tmp_path)
    assert "note: no measured step time: " in plan(capsys, *options, run)
