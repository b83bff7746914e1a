"""The tables of a report against numbers by hand."""

import pytest

from gkd.errors import InvalidValue
from gkd.report.arms import group_runs
from gkd.report.run_records import find_runs
from gkd.report.tables import (
    evaluations_table,
    find_baseline,
    reproduction,
    results_table,
    runs_table,
    signatures,
    speed_table,
)
from tests.report.run_folders import write_run

OFF, ON = {"on_policy_fraction": "0.0"}, {"on_policy_fraction": "1.0"}


@pytest.fixture
def records(tmp_path):
    speed = [{"step": 9, "seconds_per_step": 0.25, "tokens_per_second": 4000.0, "goodput": 0.5}]
    speed[0]["host_memory_peak_bytes"] = 3 * 2**29
    for seed, (off, on) in enumerate([(20.0, 24.0), (30.0, 36.0)]):
        write_run(tmp_path / f"on/{seed}", scores={0: 10.0, 9: on}, seed=seed, settings=ON)
        write_run(
            tmp_path / f"off/{seed}", scores={0: 10.0, 9: off}, seed=seed, settings=OFF, speed=speed
        )
    return find_runs([tmp_path])[0]


def test_results_have_starts_gains_and_paired_differences(records):
    arms = group_runs(records)
    baseline = find_baseline(arms, None)
    assert baseline.name == "off"
    table = results_table(arms, "bleu", baseline)
    assert table.head == [
        "arm", "on_policy_fraction", "runs", "at the start", "bleu", "gain", "minus off",
    ]  # fmt: skip
    assert table.rows == [
        ["off", "0.0", "2/2", "10.00 ± 0.00", "25.00 ± 63.53", "+15.00 ± 63.53", ""],
        ["on", "1.0", "2/2", "10.00 ± 0.00", "30.00 ± 76.24", "+20.00 ± 76.24", "+5.00 ± 12.71"],
    ]


def test_an_unknown_baseline_is_refused_with_the_arms_that_there_are(records):
    with pytest.raises(
        InvalidValue, match="'sft', which no arm is called; the arms are 'off', 'on'"
    ):
        find_baseline(group_runs(records), "sft")


def test_runs_show_what_differs_and_their_state(records):
    table = runs_table(records, ["bleu"])
    assert table.head == ["run", "state", "step", "SEED", "bleu", "on_policy_fraction"]
    assert table.rows[0] == ["off/0", "complete", "9 of 9", "0", "20.00", "0.0"]


def test_speed_is_in_the_units_of_its_columns(records):
    row = dict(zip(speed_table(records).head, speed_table(records).rows[0], strict=True))
    assert row == {
        "run": "off/0", "devices": "1 cpu (cpu)", "parameters": "1,000", "ms per step": "250.0",
        "tokens per second": "4,000", "MFU": "–", "goodput": "50%",
        "device memory": "–", "host memory": "1.50 GiB",
    }  # fmt: skip


def test_a_run_is_repeated_by_its_command_commit_and_seed(records):
    made = reproduction(records[1])
    assert made.command == "python -m gkd train '--gin_file=a b.gin'"
    assert {("commit", "0123abc"), ("seed", "1")} <= set(made.facts)


def test_evaluations_average_runs_and_show_the_teacher_once(tmp_path):
    for seed, score in enumerate((10.0, 20.0)):
        metrics = {
            "student": {"greedy": {"bleu": score}, "references": {"reference_log_prob": -1.0}},
            "teacher": {"greedy": {"bleu": 50.0}},
        }
        record = {"metrics": metrics, "signatures": {"bleu": "tok:13a"}}
        write_run(tmp_path / f"gkd/{seed}", scores={9: 1.0}, seed=seed, evaluation=record)
    records = find_runs([tmp_path])[0]
    table = evaluations_table(group_runs(records))
    assert table.rows == [
        ["all runs", "greedy", "15.00 ± 63.53"], ["teacher", "greedy", "50.00"],
    ]  # fmt: skip
    assert signatures(records) == [("bleu", "tok:13a")]


def test_without_evaluations_there_is_no_table_of_them(records):
    assert evaluations_table(group_runs(records)) is None
