"""The verb `infer`: restarts byte for byte, and what it refuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import pytest

from gkd.files import atomic_files
from gkd.infer import generator, infer, output_files
from gkd.runs import lease, lease_owner, model_loading
from tests.infer.inference import TEXTS, read


@pytest.fixture
def small_windows(monkeypatch):
    """A window is one batch of eight inputs."""
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 1)


SAMPLED = {"temperature": 1.0, "samples": 2, "max_length": 3}


def test_killed_anywhere_it_continues_to_the_same_bytes(run, small_windows):
    path = run.write("in.txt", TEXTS * 2)
    assert run(path, "whole.jsonl", **SAMPLED) == 0
    whole = (run.folder / "whole.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    settings = (run.folder / "whole.jsonl.settings.json").read_text()
    # In a line of the first window; at a window's end; in the third window; before the rename.
    for kept, done in [(ends[2] + 9, 0), (ends[15], 8), (ends[40], 16), (len(whole), 22)]:
        (run.folder / "out.jsonl").unlink(missing_ok=True)
        (run.folder / "out.jsonl.partial").write_bytes(whole[:kept])
        (run.folder / "out.jsonl.settings.json").write_text(settings)
        assert run(path, **SAMPLED) == 0
        assert (run.folder / "out.jsonl").read_bytes() == whole
        assert not (run.folder / "out.jsonl.partial").exists()
        record = json.loads((run.folder / "out.jsonl.settings.json").read_text())
        assert [launch["inputs_done_before"] for launch in record["launches"]] == [0, done]
        assert f" {2 * (22 - done)} samples" in run.stdout


def test_a_signal_drops_the_window_in_flight_and_the_same_command_continues(
    run, small_windows, monkeypatch
):
    path = run.write("in.txt", TEXTS * 2)
    assert run(path, "whole.jsonl", **SAMPLED) == 0
    whole = (run.folder / "whole.jsonl").read_bytes()
    finish, calls = generator.Generator._finish, []

    def finish_and_signal(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, *arguments)

    monkeypatch.setattr(generator.Generator, "_finish", finish_and_signal)
    assert run(path, **SAMPLED) == 75
    assert "SIGTERM: 16 of 22 inputs are complete" in run.stderr
    assert not (run.folder / "out.jsonl").exists()
    assert whole.startswith((run.folder / "out.jsonl.partial").read_bytes())
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 2)
    assert run(path, **SAMPLED) == 1
    run.refused("window 8, this is 16")
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 1)
    assert run(path, **SAMPLED) == 0
    assert (run.folder / "out.jsonl").read_bytes() == whole

    calls.clear()
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 3)  # the signal comes inside the only window
    assert run(path, "other.jsonl", **SAMPLED) == 75
    assert "SIGTERM: 0 of 22 inputs are complete" in run.stderr


def test_a_complete_output_is_left_alone(run, monkeypatch):
    path = run.write("in.txt", TEXTS[:2])
    assert run(path, max_length=2) == 0
    before = {p: p.read_bytes() for p in run.folder.iterdir()}
    monkeypatch.setattr(model_loading, "load_checkpoint", None)  # not even loaded
    assert run(path, max_length=2) == 0
    assert "is complete" in run.stdout
    assert {p: p.read_bytes() for p in run.folder.iterdir()} == before
    record = json.loads((run.folder / "out.jsonl.settings.json").read_text())
    assert record["settings"]["input_bytes"] == path.stat().st_size
    assert record["launches"][0]["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"max_length": 3}, ["max_length 2, this is 3"]),
        ({"temperature": 0.5, "seed": 1}, ["temperature 0.0, this is 0.5"]),
        ({"prefix": "x"}, ["prefix '', this is 'x'"]),
        ({"batch_size": 16}, ["batch_size 8, this is 16"]),
        ({"dtype": "bfloat16"}, ["dtype 'float32', this is 'bfloat16'"]),
        ({"beams": 2}, ["beams 0, this is 2"]),
    ],
)
def test_other_settings_do_not_continue(run, options, parts):
    path = run.write("in.txt", ["a"])
    text = json.dumps({"settings": settings_of(run, path), "launches": []})
    (run.folder / "out.jsonl.settings.json").write_text(text)
    assert run(path, **({"max_length": 2} | options)) == 1
    run.refused(*parts, "another --output")


def settings_of(run, path):
    assert run(path, "first.jsonl", max_length=2) == 0
    return json.loads((run.folder / "first.jsonl.settings.json").read_text())["settings"]


def test_another_input_does_not_continue(run):
    path = run.write("in.txt", ["a"])
    assert run(path, max_length=2) == 0
    run.write("in.txt", ["b"])
    assert run(path, max_length=2) == 1
    run.refused("out.jsonl was begun with input_sha256")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.partial"])
def test_a_file_of_somebody_else_is_not_overwritten(run, name):
    (run.folder / name).write_text("precious\n")
    assert run(run.write("in.txt", ["a"])) == 1
    run.refused(name, "another --output")
    assert (run.folder / name).read_text() == "precious\n"


def test_damaged_settings(run):
    (run.folder / "out.jsonl.settings.json").write_text('{"settings": {')
    assert run(run.write("in.txt", ["a"])) == 1
    run.refused("out.jsonl.settings.json is damaged")


def test_a_full_disk_is_one_line_and_the_rest_is_kept(run, small_windows, monkeypatch):
    path = run.write("in.txt", TEXTS)
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) == 4:  # after the lease, the settings and the first window
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 9)  # what did not fit
            raise OSError(28, "No space left on device")
        return sync(descriptor)

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    assert run(path, **SAMPLED) == 1
    run.refused("cannot write", "out.jsonl.partial", "No space left on device", "continues")
    assert run(path, **SAMPLED) == 0
    assert " (8 by earlier launches)" in run.stdout
    assert len(read(run.folder / "out.jsonl")) == 2 * len(TEXTS)


def cut_line(content, number):
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:number] + [lines[number][:30]] + lines[number + 1 :])


def drop_line(content, number):
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:number] + lines[number + 1 :])


def change_text(content, number):
    """Damage that leaves the JSON valid."""
    lines = content.splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"log_prob": -', b'"log_prob": -9')
    return b"".join(lines)


def repeat_line(content, number):
    lines = content.splitlines(keepends=True)
    return b"".join(lines[: number + 1] + lines[number:])


@pytest.mark.parametrize(
    ("damage", "number", "done"),
    [
        (drop_line, 3, 0),
        (change_text, 20, 8),
        pytest.param(cut_line, 20, 8, marks=pytest.mark.slow),
        pytest.param(repeat_line, 35, 16, marks=pytest.mark.slow),
    ],
)
def test_damage_in_the_middle_of_a_partial_output_is_mended_and_reported(
    run, small_windows, monkeypatch, damage, number, done
):
    path = run.write("in.txt", TEXTS * 2)
    assert run(path, "whole.jsonl", **SAMPLED) == 0
    whole = (run.folder / "whole.jsonl").read_bytes()

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # all windows are written
        patch.setattr(output_files.OutputFiles, "finish", killed)
        assert run(path, **SAMPLED) == 130
    partial = run.folder / "out.jsonl.partial"
    assert partial.read_bytes() == whole
    partial.write_bytes(damage(whole, number))
    assert partial.read_bytes() != whole
    assert run(path, **SAMPLED) == 0
    assert (run.folder / "out.jsonl").read_bytes() == whole
    warnings = [line for line in run.stderr.splitlines() if "gkd: warning" in line]
    assert len(warnings) == 1 and "out.jsonl.partial is damaged" in warnings[0]
    assert f"the lines after input {done} are written again" in warnings[0]


def test_an_output_that_is_not_whole_is_not_called_complete(run):
    path = run.write("in.txt", TEXTS)
    assert run(path, **SAMPLED) == 0
    settings, output = run.folder / "out.jsonl.settings.json", run.folder / "out.jsonl"
    record, whole = json.loads(settings.read_text()), output.read_bytes()
    for recorded in (True, False):
        if not recorded:  # as earlier versions left it
            settings.write_text(json.dumps({**record, "output": None}))
        for damage in (cut_line, drop_line, repeat_line, *([change_text] if recorded else [])):
            damaged = damage(whole, 5)
            output.write_bytes(damaged)
            assert run(path, **SAMPLED) == 1
            run.refused("out.jsonl", "damaged or changed", "delete it to write it again")
            assert output.read_bytes() == damaged
        output.write_bytes(whole)
        assert run(path, **SAMPLED) == 0 and "is complete" in run.stdout


def test_a_second_launch_to_the_same_output_is_refused(run, monkeypatch):
    """The issue's own case: both said "written", and the file had 392 of 5000 lines."""
    path = run.write("in.txt", TEXTS)
    other = subprocess.Popen(["sleep", "900"])
    owner = dataclasses.replace(
        lease_owner.Owner.this_process(), pid=other.pid, started=lease_owner._start_of(other.pid)[0]
    )
    lease.file_of(run.folder / "out.jsonl", 1).write_bytes(owner.record(0))
    partial = run.folder / "out.jsonl.partial"
    assert run(path, **SAMPLED) == 1
    run.refused("output", "out.jsonl is in use by another launch", f"process {other.pid}, since")
    assert not partial.exists() and not (run.folder / "out.jsonl.settings.json").exists()
    other.kill()
    other.wait()
    assert run(path, **SAMPLED) == 0
    assert sorted(p.name for p in run.folder.iterdir() if "jsonl" in p.name) == [
        "out.jsonl", "out.jsonl.settings.json",
    ]  # fmt: skip


def test_a_launch_that_was_taken_over_writes_nothing_more(run, small_windows, monkeypatch):
    path = run.write("in.txt", TEXTS * 2)
    append, place = output_files.OutputFiles.append, run.folder / "out.jsonl"

    def append_and_lose(self, text):
        append(self, text)
        number = max(lease.numbers(place))
        owner = lease_owner.Owner.parse(lease.file_of(place, number).read_bytes())
        successor = dataclasses.replace(owner, id="x", host="another", previous=owner.id)
        lease.file_of(place, number + 1).write_bytes(successor.record(0))
        monkeypatch.setattr(lease, "_clock", lambda: 1e9)  # as after a suspension

    monkeypatch.setattr(output_files.OutputFiles, "append", append_and_lose)
    assert run(path, **SAMPLED) == 1
    run.refused("out.jsonl was taken over by another launch (host another")
    lines = (run.folder / "out.jsonl.partial").read_text().splitlines()
    assert len(lines) == 16  # the first window alone
    assert lease.numbers(place) == [2]  # the other's stays


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("in.txt", None, {}, ["in.txt does not exist"]),
        ("in.docx", b"a\n", {}, ["in.docx is none of", ".jsonl", ".csv", ".parquet"]),
        ("in.txt", b"", {}, ["in.txt has no rows"]),
        ("in.tsv", b"input\n", {}, ["in.tsv has no rows"]),
        ("in.txt", b"fine\n\xff\n", {}, ["in.txt:2", "not UTF-8"]),
        ("in.txt", b"a\n", {"input_field": "x"}, ["in.txt is plain text, without fields"]),
        ("in.txt", b"a\n", {"score": True}, ["in.txt is plain text, without fields"]),
        ("in.jsonl", b'{"input": "a"}\n{"input"\n', {}, ["in.jsonl:2", "malformed JSON"]),
        ("in.jsonl", b'{"input": "a"}\n[1]\n', {}, ["in.jsonl:2", "needs an object"]),
        ("in.jsonl", b'{"input": "a"}\n{"in": 1}\n', {}, ["in.jsonl:2", "no field 'input'"]),
        ("in.jsonl", b'{"input": "a"}\n{"input": [1]}\n', {}, ["in.jsonl:2", "a list, needs text"]),
        ("in.jsonl", b'{"input": "\\ud800"}\n', {}, ["in.jsonl:1", "no valid text"]),
        ("in.jsonl", b'{"q": "a", "r": 1}\n', {}, ["no field input or", "q, r", "--input_field"]),
        ("in.jsonl", b'{"q": "a"}\n', {"input_field": "p"}, ["in.jsonl:1: no field 'p'"]),
        ("in.jsonl", b'{"input": "a"}\n', {"score": True}, ["no field target", "--target_field"]),
        (
            "in.jsonl",
            b'{"input": "a", "target": "b"}\n{"input": "a", "target": null}\n',
            {"score": True},
            ["in.jsonl:2: field 'target' is null"],
        ),
        ("in.jsonl", b'{"input": "a", "t": ""}\n', {"target_field": "t"}, ["only with --score"]),
        ("in.tsv", b"input\tb\na\n", {}, ["in.tsv:2: 1 columns, needs 2"]),
        ("in.txt", b"a\n", {"output": "/dev/null/out.jsonl"}, ["/dev/null is no folder"]),
        ("in.txt", b"a\n", {"output": "out.txt"}, ["out.txt holds JSON lines"]),
        ("in.txt", b"a\n", {"samples": 3, "beams": 2}, ["samples is 3 and beams 2"]),
        ("in.txt", b"a\n", {"samples": 2}, ["2 greedy samples are all the same"]),
        ("in.txt", b"a\n", {"beams": 2, "temperature": 1}, ["beams search, temperature"]),
        ("in.txt", b"a\n", {"top_k": 2}, ["set temperature above 0"]),
        ("in.txt", b"a\n", {"length_penalty": 1}, ["set beams too"]),
        ("in.txt", b"a\n", {"batch_size": 12}, ["batch_size 12 does not divide over 8 devices"]),
        ("in.txt", b"a\n", {"model": "/no/such/model"}, ["/no/such/model"]),
        ("in.txt", b"a\n", {"vocabulary": "/no/spiece.model"}, ["/no/spiece.model"]),
    ],
)
def test_bad_input(run, name, content, options, parts):
    if content is not None:
        (run.folder / name).write_bytes(content)
    assert run(run.folder / name, **options) == 1
    run.refused(*parts)
    assert not (run.folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    "options, part",
    [
        ({"samples": 0}, "samples is 0"),
        ({"beams": 2, "length_penalty": -1}, "length_penalty is -1"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 1, "top_p": 0}, "top_p is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"input_length": 0}, "input_length is 0"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
    ],
)
def test_values_out_of_range_are_errors_of_the_command_line(run, options, part):
    """Exit code 2, as the help text lists it, before a model or an input is looked at."""
    assert run(run.folder / "none.txt", **options) == 2
    run.refused(part)
    assert not (run.folder / "out.jsonl").exists()


def test_help_is_quick():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gkd", "infer", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for word in ("--temperature", "--beams", "(default: 128)"):
        assert word in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "tensorflow", "seqio", "numpy"}


def test_another_content_of_the_model_does_not_continue(tmp_path):
    """One path, two trainings; the record of an earlier version has no digest, a folder may."""
    files = output_files.OutputFiles(tmp_path / "out.jsonl", count=1)
    settings = {"model": "runs/t/checkpoints/2", "model_digest": "a" * 16, "seed": 0}
    assert files.resume(settings) == 0
    files.append('{"index": 0, "sample": 0}\n')
    retrained = {**settings, "model_digest": "b" * 16}
    with pytest.raises(FileExistsError, match="was begun with model_digest 'aaaaaaaaaaaaaaaa', th"):
        files.resume(retrained)
    files.finish()
    assert files.is_complete(settings)
    with pytest.raises(FileExistsError, match="this is 'bbbbbbbbbbbbbbbb': give the same"):
        files.is_complete(retrained)
    record = json.loads(files.settings.read_text())
    del record["settings"]["model_digest"]
    files.settings.write_text(json.dumps(record))
    assert files.is_complete(settings) and files.is_complete(retrained)
    with pytest.raises(FileExistsError, match="seed 0, this is 1"):
        files.is_complete({**settings, "seed": 1})
