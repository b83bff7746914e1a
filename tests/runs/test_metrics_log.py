"""The metrics log: exact numbers, nothing lost to a kill, nothing left past a resume."""

import contextlib
import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.summary.writer import event_file_writer
from tensorboard.util import tensor_util

from gkd.runs.metrics_log import MetricsLog, read_metrics
from gkd.vocabularies import tensorflow_host


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


def test_tensorboard_forgets_the_steps_past_a_resume(tmp_path):
    # Names of event files hold a counter of the process: several writers came before.
    for number in range(9):
        event_file_writer.EventFileWriter(str(tmp_path / f"other{number}")).close()
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


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("{}", "step is None"),
        ('{"step": "2"}', "step is '2'"),
        ('{"step": 2.5}', "step is 2.5"),
        ('{"step": true}', "step is True"),
        ('{"step": -1}', "step is -1"),
        ("[2]", "a list, not an object"),
        ("7", "a whole number, not an object"),
        ("", "is empty"),
        ("[" * 5000, "nested more than"),
        ('{"step": 2, "step": 3}', "twice"),
    ],
)
def test_a_row_without_a_step_is_named(log, tmp_path, row, part):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{row}\n{{"step": 3}}\n')
    for read in (lambda: read_metrics(tmp_path), lambda: log.truncate_after(1)):
        with pytest.raises(ValueError, match="metrics.jsonl:2: not a row of JSON") as error:
            read()
        assert part in str(error.value) and "\n" not in str(error.value)
    assert len(lines(tmp_path)) == 3


@pytest.mark.parametrize("value", ['"a"', "[1]", "null", "{}", "false"])
def test_a_value_that_is_no_number_is_named(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {value}}}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:1: loss is .* not a number"):
        read_metrics(tmp_path)


def test_a_folder_or_file_in_the_way_is_named(tmp_path):
    (tmp_path / "samples.jsonl").mkdir()
    with pytest.raises(ValueError, match="samples.jsonl is a folder"):
        MetricsLog(tmp_path, tensorboard=False)
    (tmp_path / "samples.jsonl").rmdir()
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(ValueError, match="tensorboard is a file"):
        MetricsLog(tmp_path)


def test_files_of_others_in_the_tensorboard_folder_are_left_alone(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    for name in (
        "notes.txt",
        "events.out.tfevents.",
        "events.out.tfevents.late.host",
        "a.tfevents",
    ):
        (folder / name).write_text("mine")
    with MetricsLog(tmp_path) as log:
        log.truncate_after(0)
        log.write(1, {"loss": 0.5})
    assert (folder / "notes.txt").read_text() == "mine"


def damage(path, kind):
    content = path.read_bytes()
    rows = content.splitlines(keepends=True)
    if kind == "deleted":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": content[: len(content) // 2],
                "a row less": b"".join(rows[:1] + rows[2:]),
                "changed": content.replace(b"0.5", b"0.7"),
                "whole": content,
            }[kind]
        )


@pytest.mark.parametrize("kind", ["deleted", "empty", "cut", "a row less", "changed", "whole"])
def test_a_log_that_is_not_what_the_checkpoint_knows_is_reported(tmp_path, capsys, kind):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 0.5 * step})
            log.write_texts(step, "samples", [{"a": "b"}])
        position = log.position()
        log.write(4, {"loss": 0.125})  # after the checkpoint: to be written again
    damage(tmp_path / "metrics.jsonl", kind)
    with MetricsLog(tmp_path, tensorboard=False, expected=position) as log:
        log.truncate_after(3)
        errors = capsys.readouterr().err
        if kind == "whole":
            assert errors == "" and log.position() == position
        else:
            (line,) = errors.splitlines()
            assert "metrics.jsonl has " in line and "saved with 3 (" in line
        log.write(4, {"loss": 0.125})  # it goes on all the same
    with MetricsLog(tmp_path, tensorboard=False, expected=log.position()) as log:
        log.truncate_after(4)
    assert capsys.readouterr().err == ""


def test_tensorboard_explains_each_number_and_shows_the_samples(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(1, {"train/loss": 0.5, "train/of_my_own": 2.0})
        log.write_events(1, {"speed/goodput": 0.75})
        log.write_texts(1, "samples/xsum", [{"student": "a text"}])
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def about(name):
        return events.SummaryMetadata(name).summary_description

    assert "loss that is minimised" in about("train/loss") and about("train/of_my_own") == ""
    assert about("speed/goodput") == (
        "Share of the launch's time that was spent in training steps."
    )
    (value,) = events.Tensors("speed/goodput")
    assert (value.step, float(tensor_util.make_ndarray(value.tensor_proto))) == (1, 0.75)
    (text,) = events.Tensors("samples/xsum")
    assert b"a text" in tensor_util.make_ndarray(text.tensor_proto).item()


def test_tensorboards_full_disk_is_one_line(tmp_path, monkeypatch):
    class Full:
        def scalar(self, *_, **__):
            raise RuntimeError("Error 'op: x; No space left on device [Op:W]' ASYNCHRONOUSLY")

        def close(self):
            self.scalar()

    log = MetricsLog(tmp_path)
    monkeypatch.setattr(tensorflow_host.tf, "summary", Full())
    log._writer = contextlib.nullcontext()
    log._writer.as_default = lambda: log._writer
    with pytest.raises(OSError, match=r"cannot write .*tensorboard \(No space left on device\)"):
        log.write(1, {"loss": 0.5})
    log._writer = Full()
    with pytest.raises(KeyError), log:  # the first error is the one that is told
        raise KeyError
