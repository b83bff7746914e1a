"""Sweeps: what cells share, what they were made with, how they are named and how they fail."""

import hashlib
import json
import pathlib
import re
import shlex
import shutil

import pytest

from gkd.cli import command_line
from gkd.runs import setting_changes
from gkd.sweep import cells, sweep
from tests.paths import TINY
from tests.sweep.sweeping import launches, rows_of

PREREQUISITES = f"""{{
    'teacher': ['train', '{TINY}', "MODEL_DIR='shared/teacher'"],
    'start': ['train', '{TINY}', "MODEL_DIR='shared/start'", 'TRAIN_STEPS=30'],
    'outputs': ['infer', '--model=shared/teacher', '--task=configs/tasks/arithmetic.gin',
                '--output=shared/outputs.jsonl'],
}}"""
NEEDS = """{
    'method': {
        'sft': ["STUDENT='shared/start'"],
        'seqkd': ["STUDENT='shared/start/checkpoints'", 'configs/methods/seqkd.gin',
                  "TEACHER_OUTPUTS='./shared/outputs.jsonl'"],
    },
}"""


def first(*overrides, cells=NEEDS):
    return [
        f"PREREQUISITES={PREREQUISITES}",
        f"sweep.sweep.axes={cells}",
        "ACTION='run'",
        *overrides,
    ]


def test_what_cells_share_is_made_once_and_first(grid, capfd):
    assert grid(*first("ACTION='list'")) == 0
    commands = [shlex.split(line)[3:] for line in capfd.readouterr().out.splitlines()]
    assert commands[0] == ["train", f"--gin_file={TINY}", "--gin.MODEL_DIR='shared/teacher'"]
    assert commands[2][:2] == ["infer", "--model=shared/teacher"] and len(commands) == 5
    # OVERRIDES are of the cells: another sweep may share what is made first.
    assert grid(*first("ACTION='list'", "OVERRIDES=['BATCH_SIZE=8']")) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [("--gin.BATCH_SIZE=8" in line) for line in lines] == [False] * 3 + [True] * 2
    assert grid(*first()) == 0
    shared = ["shared/teacher", "shared/start", "shared/outputs.jsonl"]
    assert launches() == [*shared, "out/sft", "out/seqkd"]
    assert [row[:2] for row in rows_of(capfd.readouterr().err)][-5:] == [
        [name, "complete"]
        for name in (
            "prerequisite/teacher",
            "prerequisite/start",
            "prerequisite/outputs",
            "sft",
            "seqkd",
        )
    ]
    assert grid(*first()) == 0 and len(launches()) == 5
    # What is gone is made again only where an open cell needs it.
    shutil.rmtree("shared/teacher")
    shutil.rmtree("shared/start")
    shutil.rmtree("out/sft")
    assert grid(*first()) == 0
    assert launches()[5:] == ["shared/start", "out/sft"]
    assert ["prerequisite/teacher", "not", "needed"] in [
        r[:3] for r in rows_of(capfd.readouterr().err)
    ]


def test_cells_wait_for_what_they_need_only(grid, capfd):
    """The teacher fails, and with it what needs it; the other cell has its start."""
    pathlib.Path("fail").write_text("shared/teacher")
    assert grid(*first("MAX_PARALLEL=2")) == 1
    assert sorted(launches()) == ["out/sft", "shared/start", "shared/teacher"]
    errors = capfd.readouterr().err
    rows = {row[0]: " ".join(row[1:]) for row in rows_of(errors)}
    assert rows["seqkd"].startswith("waits for prerequisite/outputs")
    assert rows["prerequisite/outputs"].startswith("waits for prerequisite/teacher")
    assert rows["prerequisite/teacher"].startswith("failed: exit code 1")
    assert "1 of 5 cells failed: prerequisite/teacher (exit code 1)" in errors.splitlines()[-1]


def test_an_evaluation_needs_what_it_reads_only(grid):
    """Not the start of a run that is complete; the teacher, where it has one."""
    assert grid(*first()) == 0
    shutil.rmtree("shared/start")
    shutil.rmtree("shared/teacher")
    assert grid(*first("EVALUATIONS={'all': []}")) == 0
    assert launches()[5:] == ["out/sft/evaluation-all.json", "out/seqkd/evaluation-all.json"]
    taught = "EVALUATIONS={'taught': [\"TEACHER='shared/teacher'\"]}"
    assert grid(*first(taught)) == 0
    assert launches()[7] == "shared/teacher" and len(launches()) == 10


def test_a_dry_run_makes_nothing_first(grid, capfd):
    assert grid(*first("OVERRIDES=['DRY_RUN=True']")) == 0
    assert launches() == ["out/sft", "out/seqkd"]


@pytest.mark.parametrize(
    ("prerequisites", "part"),
    [
        ("{'a': 'train'}", "prerequisite a is 'train': write ["),
        ("{'a': ['evaluate', 'x.gin']}", "prerequisite a is ['evaluate', 'x.gin']: write ["),
        ("{'a': ['train', 'no.gin']}", "cell prerequisite/a: --gin_file=no.gin: no such file"),
        ("{'a': ['train', 'no']}", "option a: 'no' in place of a list of gin files"),
        ("{'a': ['infer', '--model=x']}", "prerequisite a: infer: the following arguments are req"),
        ("{'a': ['infer', '--modle=x']}", "prerequisite a: infer: unknown argument '--modle'"),
        ("{'..': ['infer', '--model=x']}", "the option '..' names a folder"),
    ],
)
def test_a_wrong_prerequisite_is_refused_before_anything_runs(grid, prerequisites, part, capsys):
    assert grid(f"PREREQUISITES={prerequisites}") == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and part in errors
    assert launches() == []


def test_a_command_that_ends_without_its_result_has_failed(grid, capfd):
    """A launcher that does not wait for the run would otherwise make every cell look complete."""
    pathlib.Path("nothing").touch()
    assert grid("OVERRIDES=['BATCH_SIZE=8']") == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "4 of 4 cells failed: sft/0 (ended, but out/sft/0/summary.json does not mark" in last
    assert len(launches()) == 4


def test_the_last_line_of_a_failed_cells_log_is_reported(grid, capfd):
    pathlib.Path("fail").write_text("out/sft/1")
    assert grid("MAX_PARALLEL=2") == 1
    errors = capfd.readouterr().err
    assert "[2/4] sft/1: failed: exit code 1: it fails (out/logs/sft/1.log)" in errors
    assert pathlib.Path("out/logs/sft/1.log").read_text() == "it fails\n"


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("jsd_0.1/seed=0", "jsd-0-1-seed-0"), ("0.0/forward_kl/0", "c-0-0-forward-kl-0"),
        ("A" * 40, "a" * 23 + "-" + hashlib.sha256(b"A" * 40).hexdigest()[:8]),
    ],
)  # fmt: skip
def test_a_launcher_gets_a_name_that_clouds_allow(name, want):
    cell = cells.Cell({"axis": name}, (), "", {})
    assert cell.launch_name == want
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", want) and len(want) <= 32


def test_two_cells_of_one_launch_name_are_refused(grid, capsys):
    axes = "sweep.sweep.axes={'a': {'x.y': [], 'x_y': []}}"
    assert grid(axes, "LAUNCHER=['bash', '{name}']") == 1
    assert "cells x.y and x_y are both x-y to the launcher" in capsys.readouterr().err
    assert grid(axes, "LAUNCHER=['bash', 'tpu.sh']", "ACTION='list'") == 0


def test_a_sweep_may_lie_in_a_bucket(grid, tmp_path, monkeypatch, capsys):
    """Commands keep gs://, for hosts with mounts of their own; results are read in this mount."""
    place = "sweep.sweep.directory='gs://b/out'"
    assert grid(place, "ACTION='list'") == 0
    assert "--gin.MODEL_DIR='gs://b/out/sft/0'" in shlex.split(capsys.readouterr().out)
    assert grid(place, "ACTION='status'") == 1
    assert "GKD_BUCKETS is not set" in capsys.readouterr().err
    monkeypatch.setenv("GKD_BUCKETS", str(tmp_path))
    made = tmp_path / "b/out/sft/0"
    made.mkdir(parents=True)
    (made / "summary.json").write_text('{"steps": 40}')
    assert grid(place, "ACTION='status'") == 0
    assert [row[1] for row in rows_of(capsys.readouterr().out)] == ["complete", *["open"] * 3]


def test_a_cell_that_was_made_otherwise_is_refused(grid, capsys):
    """A run of its own, by the very command; then the grid's configuration changes."""
    axes = "sweep.sweep.axes={'method': {'sft': ['configs/methods/sft.gin', 'TRAIN_STEPS=2']}}"
    small = "'EVALUATION_EXAMPLES=8', 'experiment.Execution.tensorboard=False'"
    assert grid(axes, f"OVERRIDES=[{small}]", "ACTION='list'") == 0
    words = shlex.split(capsys.readouterr().out)[3:]
    assert command_line.main(words) == 0
    capsys.readouterr()
    # The same in other words, and what has no effect.
    more = "'LEARNING_RATE=0.003', 'LOG_EVERY=7', 'STALL_SECONDS=9'"
    assert grid(axes, f"OVERRIDES=[{small}, {more}]") == 0
    assert "[1/1] sft: complete" in capsys.readouterr().err
    wrong = f"OVERRIDES=[{small}, 'LEARNING_RATE=0.01', 't5.T5Config.dropout_rate=0.5']"
    assert grid(axes, wrong) == 1
    error = capsys.readouterr().err
    changes = "sft (dropout_rate 0.0 → 0.5; learning_rate 0.003 → 0.01)"
    assert error.startswith(f"gkd: error: complete, but with another configuration: {changes}; no")
    assert error.count("\n") == 1
    assert grid(axes, wrong, "ACTION='status'") == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert row[:3] == ["sft", "another", "configuration:"]
    assert launches() == [] and json.loads(pathlib.Path("out/sft/summary.json").read_text())


def test_what_nothing_sets_any_more_is_as_it_would_be_now():
    """A parameter that this version has not, and a default that is spelled out, are no change."""
    recorded = {
        "t5.T5Config.dropout_rate": "0.25", "gkd.distill.optimizers.adamw.b2": "0.99",
        "optimizers.adamw.b1": "0.9", "t5.T5Config.no_such": "1", "train.train.remat": "True",
    }  # fmt: skip
    changes = setting_changes.of_bindings(recorded, {}, "train")
    assert changes == ["b2 0.99 → 0.999", "dropout_rate 0.25 → 0.0"]
    assert setting_changes.of_bindings(None, {}, "train") == []


def test_outputs_that_were_made_otherwise_are_refused(grid, capsys):
    assert grid(*first()) == 0
    capsys.readouterr()
    assert grid(*(text.replace("--model=shared", "--seed=3', '--model=shared") for text in first()))
    assert "another configuration: prerequisite/outputs (seed 0 → 3)" in capsys.readouterr().err


def test_a_conversion_is_made_before_the_runs_that_begin_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prerequisites = {
        "teacher": ["train", str(TINY), "MODEL_DIR='shared/teacher'"],
        "layers": ["convert", "shared/teacher", "shared/layers", "--keep_decoder_layers=0"],
    }
    student = ["STUDENT='shared/layers'", "STUDENT_MODEL=None"]
    axes = {"method": {"sft": student}, "seed": {"0": ["SEED=0"]}}
    teacher, layers, cell = sweep.plan("out", [str(TINY)], axes, prerequisites=prerequisites)
    assert (layers.needs, cell.needs) == ((teacher,), (layers,))
    assert layers.arguments == tuple(prerequisites["layers"])
    place = pathlib.Path("shared/layers")
    place.mkdir(parents=True)
    assert layers.outcome() is None and layers.progress() == (None, None, None)
    (place / "config.json").touch()
    assert layers.outcome() is not None and layers.changes() == []
    arguments = {**layers.settings, "keep_decoder_layers": "0,1"}
    record = {"arguments": arguments, "source": "gone", "digest": None}
    (place / "conversion.json").write_text(json.dumps(record))
    assert layers.changes() == ["keep_decoder_layers '0,1' → '0'"]


def step_of(name, content):
    """Writes a step folder whose digest is of this content; returns the folder and the digest."""
    folder = pathlib.Path(name).absolute() / "checkpoints" / "2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hashes.json").write_text(content)
    return str(folder), hashlib.sha256(content.encode()).hexdigest()[:16]


def write_launches(run, *launches):
    text = "".join(json.dumps(launch) + "\n" for launch in launches)
    pathlib.Path(run, "launches.jsonl").write_text(text)


def launch_from(step, **read):
    """A launch's row, of the names and digests that it read by role."""
    return {
        "continues_from": step,
        "checkpoints": {role: name for role, (name, _) in read.items()},
        "digests": {role: digest for role, (_, digest) in read.items()},
    }


def test_a_run_whose_teacher_or_start_was_trained_again_is_reported(grid, capsys):
    assert grid() == 0
    teacher, start, own = (
        step_of(name, name) for name in ("teacher", "start", "out/jsd_0.1/0")
    )  # fmt: skip
    run = "out/jsd_0.1/0"
    resumed = launch_from(2, STUDENT=own, TEACHER=teacher)
    write_launches(run, launch_from(0, STUDENT=start, TEACHER=teacher), resumed)
    capsys.readouterr()
    assert grid("ACTION='table'") == 0 and capsys.readouterr().err == ""
    step_of(run, "trained further")  # its own step is no source
    assert grid("ACTION='table'") == 0 and capsys.readouterr().err == ""
    step_of("teacher", "again")
    assert grid() == 1
    error = capsys.readouterr().err
    assert f"jsd_0.1/0 (TEACHER {teacher[0]} has been trained again); nothing was run" in error
    step_of("teacher", "teacher")
    step_of("start", "again")
    assert grid() == 1
    assert f"(STUDENT {start[0]} has been trained again)" in capsys.readouterr().err
    # A run that began again did not read it; without a record, or moved, it has not changed.
    write_launches(run, launch_from(0, STUDENT=start), launch_from(0, TEACHER=teacher))
    assert grid() == 0
    write_launches(run, {"continues_from": 0, "checkpoints": {"STUDENT": start[0]}})
    assert grid() == 0
    write_launches(run, launch_from(0, STUDENT=start))
    shutil.rmtree("start")
    assert grid() == 0


def test_an_evaluation_and_outputs_of_what_was_trained_again_are_reported(grid, capsys):
    evaluations = "EVALUATIONS={'all': []}"
    assert grid(*first(evaluations)) == 0
    teacher, digest = step_of("other", "first")
    path = pathlib.Path("out/sft/evaluation-all.json")
    measured = json.loads(path.read_text())
    measured["teacher"] = {"step_folder": teacher, "digest": digest}
    path.write_text(json.dumps({**measured, "student": {"step_folder": "gone", "digest": "1"}}))
    path = pathlib.Path("shared/outputs.jsonl.settings.json")
    record = json.loads(path.read_text())
    record["settings"] = {"model": teacher, "model_digest": digest}
    path.write_text(json.dumps(record))
    assert grid(*first(evaluations)) == 0
    step_of("other", "again")
    capsys.readouterr()
    assert grid(*first(evaluations, "ACTION='table'")) == 0
    warnings = json.loads(pathlib.Path("out/table.json").read_text())["warnings"]
    assert [text.partition("configuration: ")[2] for text in warnings] == [
        f"prerequisite/outputs (MODEL {teacher} has been trained again)",
        f"sft/all (TEACHER {teacher} has been trained again)",
    ]
