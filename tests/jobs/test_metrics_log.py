"""The metrics log: exact numbers, nothing lost to a kill, nothing left past a resume."""

import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util import tensor_util

from gkd.jobs.metrics_log import MetricsLog, markdown_table, read_metrics


@pytest.fixture
def log(tmp_path):
    return MetricsLog(tmp_path, tensorboard=False)


def lines(folder, name="metrics.jsonl"):
    return (folder / name).read_text().splitlines()


def test_a_row_is_on_disk_when_write_returns(log, tmp_path):
    log.write(3, {"train/loss": 0.1, "train/tokens": 4096})
    assert lines(tmp_path) == ['{"step": 3, "train/loss": 0.1, "train/tokens": 4096}']


def test_every_kind_of_number_keeps_its_bits(log, tmp_path):
    third32 = np.float32(1) / np.float32(3)
    values = {"python": 1 / 3, "numpy": third32, "jax": jnp.asarray(third32), "flag": True}
    log.write(1, values | {"count": np.int32(7), "bfloat": jnp.bfloat16(1.5)})
    (row,) = read_metrics(tmp_path)
    # IEEE 754: 1/3 is 0x3FD5555555555555 in double, 0x3EAAAAAB in single precision.
    assert struct.pack(">d", row["python"]).hex() == "3fd5555555555555"
    assert struct.pack(">f", row["numpy"]).hex() == "3eaaaaab"
    assert row["numpy"] == row["jax"] == 11184811 / 2**25
    assert row["count"] == 7 and row["flag"] == 1.0 and row["bfloat"] == 1.5


def test_not_a_number_and_infinities_are_strings_of_valid_json(log, tmp_path):
    log.write(1, {"a": math.nan, "b": math.inf, "c": jnp.asarray(-jnp.inf)})
    strict = json.loads(lines(tmp_path)[0], parse_constant=lambda name: pytest.fail(name))
    assert strict == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_truncation_keeps_the_restored_step_and_removes_what_follows(log, tmp_path):
    for step in (1, 2, 3, 4):
        log.write(step, {"loss": step / 7})
        log.write_texts(step, "samples", [{"student": f"text {step}"}])
    log.write(2, {"eval/bleu": 12.5})  # out of order, as an evaluation that came late
    kept = [line for line in lines(tmp_path) if json.loads(line)["step"] <= 2]
    log.truncate_after(2)
    assert lines(tmp_path) == kept and len(kept) == 3
    assert [json.loads(line)["step"] for line in lines(tmp_path, "samples.jsonl")] == [1, 2]
    log.write(3, {"loss": 0.5})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_truncation_to_before_the_first_row(log, tmp_path):
    log.write(1, {"loss": 0.5})
    log.truncate_after(0)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_half_written_row_is_dropped_on_opening(tmp_path, cut):
    row = b'{"step": 2, "loss": 0.12345}\n'
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\n' + row[: len(row) - cut])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]  # reading changes nothing
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(2, {"loss": 0.25})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_a_damaged_row_in_the_middle_is_named(log, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a row of JSON.*remove the line"):
        log.truncate_after(1)
    assert len(lines(tmp_path)) == 3  # nothing was lost


def test_samples_hold_text_of_any_language(log, tmp_path):
    table = [{"prompt": "Größe | x\ny", "student": "漢字"}]
    log.write_texts(5, "samples/xsum", table)
    row = json.loads(lines(tmp_path, "samples.jsonl")[0])
    assert row == {"step": 5, "name": "samples/xsum", "rows": table}


def test_markdown_cells_cannot_break_the_table():
    text = markdown_table([{"a": "1|2", "b": "x\ny"}, {"a": "3"}])
    assert text == "| a | b |\n| --- | --- |\n| 1\\|2 | x y |\n| 3 |  |"


def test_tensorboard_forgets_the_steps_past_a_resume(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
        log.write_texts(3, "samples", [{"student": "text"}])
    with MetricsLog(tmp_path) as log:
        log.truncate_after(1)
        log.write(2, {"loss": 20.0})
    # What TensorBoard itself reads a folder with.
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    loss = events.Tensors("loss")
    assert [event.step for event in loss] == [1, 2]
    assert [float(tensor_util.make_ndarray(event.tensor_proto)) for event in loss] == [1.0, 20.0]
    assert events.Tensors("samples") == []
