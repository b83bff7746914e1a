"""Arms, their names and their differences, by hand."""

import json

import pytest

from gkd.report.arms import group_runs, value_text
from gkd.report.run_records import find_runs
from tests.report.run_folders import write_run

OFF, ON = {"on_policy_fraction": "0.0"}, {"on_policy_fraction": "1.0"}


def groups(folder):
    return group_runs(find_runs([folder])[0])


def test_runs_that_differ_in_seeds_alone_are_one_arm(tmp_path):
    for seed, (off, on) in enumerate([(20.0, 24.0), (30.0, 36.0)]):
        start = {"student": f"'runs/start/{seed}'"}
        write_run(
            tmp_path / f"off/{seed}",
            scores={0: 10.0 + seed, 9: off},
            seed=seed,
            settings=OFF | start,
        )
        write_run(
            tmp_path / f"on/{seed}", scores={0: 10.0 + seed, 9: on}, seed=seed, settings=ON | start
        )
    off, on = groups(tmp_path).arms
    assert (off.name, on.name) == ("off", "on")
    assert dict(on.options) == {"on_policy_fraction": 1.0}
    assert [run.name for run in on.runs] == ["on/0", "on/1"]
    assert on.result("bleu")["mean"] == 30 and off.result("bleu")["values"] == [20, 30]
    assert on.gain("bleu")["values"] == [14, 25]
    paired = on.difference(off, "bleu")
    # differences 4 and 6: s = √2, t(0.975, 1) = 12.706, half width 12.706
    assert paired["mean"] == 5 and paired["interval"] == pytest.approx(12.706, abs=1e-3)


def test_a_path_that_varies_with_the_seed_has_a_star_in_its_arm(tmp_path):
    for size in ("small", "large"):
        for seed in (0, 1):
            student = {"student": f"'runs/{size}/{seed}'"}
            write_run(tmp_path / size / str(seed), scores={9: 1.0}, seed=seed, settings=student)
    write_run(tmp_path / "one/0", scores={9: 1.0}, seed=0, settings={"student": "'runs/one/0'"})
    values = {arm.name: arm.options["student"] for arm in groups(tmp_path).arms}
    assert values == {"small": "runs/small/*", "large": "runs/large/*", "one/0": "runs/one/0"}


def test_seeds_that_only_one_arm_has_are_left_out_of_a_difference(tmp_path):
    write_run(tmp_path / "off/0", scores={9: 20.0}, seed=0, settings=OFF)
    write_run(tmp_path / "on/0", scores={9: 21.0}, seed=0, settings=ON)
    write_run(tmp_path / "on/1", scores={9: 99.0}, seed=1, settings=ON)
    off, on = groups(tmp_path).arms
    assert on.difference(off, "bleu")["values"] == [1]


def test_two_runs_of_one_seed_are_averaged_before_the_seeds(tmp_path):
    scores = [("a", 0, 20.0), ("b", 0, 30.0), ("c", 1, 45.0)]
    for name, seed, score in scores:
        write_run(tmp_path / name, scores={0: 10.0, 9: score}, seed=seed)
    (arm,) = groups(tmp_path).arms
    assert arm.by_seed("bleu") == {0: 25, 1: 45} and arm.result("bleu")["mean"] == 35


def test_runs_without_settings_are_arms_of_their_own(tmp_path):
    """Called from Python, a run records no settings: nothing tells which are alike."""
    for name, score in (("sft", 20.0), ("gkd", 40.0)):
        run = write_run(tmp_path / name, scores={9: score})
        launch = json.loads((run / "launches.jsonl").read_text())
        (run / "launches.jsonl").write_text(json.dumps(launch | {"bindings": {}}) + "\n")
    assert {arm.name: arm.result("bleu")["mean"] for arm in groups(tmp_path).arms} == {
        "gkd": 40, "sft": 20,
    }  # fmt: skip


def test_teachers_and_starts_are_set_apart(tmp_path):
    teacher = write_run(tmp_path / "teacher", scores={9: 50.0})
    start = write_run(tmp_path / "start", scores={9: 10.0})
    read = {"TEACHER": f"{teacher.resolve()}/checkpoints/9", "STUDENT": f"{start.resolve()}"}
    write_run(tmp_path / "gkd", scores={0: 10.0, 9: 20.0}, checkpoints=read)
    found = groups(tmp_path)
    assert [run.name for run in found.teachers] == ["teacher"]
    assert [run.name for run in found.starts] == ["start"]
    assert [arm.name for arm in found.arms] == ["gkd"]


def test_a_moved_folder_is_recognised_by_its_settings(tmp_path):
    named = {"model_dir": "'runs/teacher'"}
    write_run(tmp_path / "teacher", scores={9: 50.0}, settings=named)
    write_run(tmp_path / "gkd", scores={9: 20.0}, settings={"teacher": "'runs/teacher/'"})
    assert [run.name for run in groups(tmp_path).teachers] == ["teacher"]


def test_arms_whose_paths_say_nothing_are_named_by_their_settings(tmp_path):
    write_run(tmp_path / "0", scores={9: 1.0}, settings=OFF)
    write_run(tmp_path / "1", scores={9: 1.0}, settings=OFF, seed=1)
    write_run(tmp_path / "2", scores={9: 1.0}, settings=ON)
    assert [arm.name for arm in groups(tmp_path).arms] == [
        "on_policy_fraction 0.0", "on_policy_fraction 1.0",
    ]  # fmt: skip


def test_a_single_run_is_an_arm_of_its_name(tmp_path):
    write_run(tmp_path / "gkd", scores={9: 1.0})
    assert [arm.name for arm in groups(tmp_path).arms] == ["gkd"]


def test_values_are_written_as_a_user_reads_them(tmp_path):
    settings = {"divergence": "@divergences.forward_kl", "temperatures": "(0.3, 1.0)"}
    (run,), _ = find_runs([write_run(tmp_path / "a", scores={9: 1.0}, settings=settings)])
    assert value_text(run.setting("divergence")) == "forward_kl"
    assert value_text(run.setting("temperatures")) == "(0.3, 1.0)"
