"""Lengths of a plan's batches, against counts of rows and moments by hand."""

import json
import math

import numpy as np
import pytest

from gkd.data.sources import permutation
from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.plan import batch_lengths, programs
from gkd.program_cost.program_cost import program_cost
from tests.plan.counting import LAYERS, STACKED
from tests.plan.planning import DISTIL, plan, traced
from tests.step_programs import program_of

LONG = ("INPUT_LENGTH=96", "TARGET_LENGTH=24", "LENGTH_BUCKETS='batches'")


def experiment(*overrides):
    return traced(*LONG, *overrides).experiment


def histograms(path, **features):
    path.write_text(json.dumps(features))
    return str(path)


def test_a_mean_stands_for_a_log_normal_distribution():
    rows = batch_lengths.row_lengths(experiment(), "40")
    # Of rows rounded up: half a token more. Its deviation is two thirds of the mean.
    assert rows["inputs"].mean() == pytest.approx(40.5, rel=0.01)
    assert rows["inputs"].std() == pytest.approx(40 * 2 / 3, rel=0.03)
    assert set(rows["targets"]) == {24}


def test_rows_have_a_histograms_distribution(tmp_path):
    path = histograms(tmp_path / "rows.json", inputs={"10": 30, "90": 10}, targets={"9": 1})
    rows = batch_lengths.row_lengths(experiment(), path)
    assert np.mean(rows["inputs"] == 10) == 0.75 and np.mean(rows["inputs"] == 90) == 0.25
    assert set(rows["targets"]) == {9}
    # As a plan writes it, and reads it back.
    written = histograms(tmp_path / "plan.json", lengths=batch_lengths.histograms(rows))
    again = batch_lengths.row_lengths(experiment(), written)
    assert np.mean(again["inputs"] == 10) == 0.75


def test_batches_are_counted_as_training_makes_them():
    rows = {"inputs": np.repeat([10, 90], [300, 100]), "targets": np.full(400, 24)}
    found = batch_lengths.batch_lengths(traced(*LONG, "BATCH_SIZE=16"), rows)
    # 300 rows are 18 batches of 16 and 12 rows that go with the long ones: 7 batches of these.
    assert found.shapes == ({"inputs": 16, "targets": 24}, {"inputs": 96, "targets": 24})
    assert found.shares == (18 / 25, 7 / 25)
    positions = 16 * (18 * (16 + 24) + 7 * (96 + 24))
    assert found.padding == pytest.approx(1 - (300 * 10 + 100 * 90 + 400 * 24) / positions)
    assert found.mean([1.0, 2.0]) == pytest.approx(1 + 7 / 25)


def test_fewer_rows_than_a_batch_are_taken_again():
    rows = {"inputs": np.array([10, 90]), "targets": np.array([24, 24])}
    found = batch_lengths.batch_lengths(traced(*LONG, "BATCH_SIZE=16"), rows)
    assert found.shares == (1.0,) and found.shapes[0]["inputs"] == 96


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("rows", InvalidValue, "--lengths is 'rows': give 'data', a file in .json, or"),
        ("97", InvalidValue, "at most INPUT_LENGTH, 96"),
        ("nan", InvalidValue, "--lengths is 'nan'"),
        ("{path}/none.json", MissingFile, "there is no such file"),
        ("{path}/word.json", InvalidFile, "word.json holds no histograms"),
        ("{path}/negative.json", InvalidFile, "a number of rows below 1"),
        ("{path}/targets.json", InvalidFile, "holds no histograms"),
    ],
)
def test_what_says_no_lengths_is_one_line(tmp_path, given, error, words):
    histograms(tmp_path / "word.json", inputs={"ten": 1})
    histograms(tmp_path / "negative.json", inputs={"10": -1})
    histograms(tmp_path / "targets.json", targets={"10": 1})
    with pytest.raises(error, match=words) as raised:
        batch_lengths.row_lengths(experiment(), given.format(path=tmp_path))
    assert "\n" not in str(raised.value)


def test_lengths_of_a_run_without_buckets_are_refused():
    with pytest.raises(InvalidValue, match="LENGTH_BUCKETS is None"):
        batch_lengths.row_lengths(experiment("LENGTH_BUCKETS=None"), "40")


def test_a_plan_weighs_the_lengths_by_how_often_they_occur(capsys, tmp_path):
    path = histograms(tmp_path / "rows.json", inputs={"10": 3, "90": 1}, targets={"24": 1})
    output = tmp_path / "plan.json"
    options = [f"--gin.{override}" for override in LONG]
    said = plan(
        capsys, *options, "--topology=cpu:1", "--programs=step", f"--lengths={path}",
        f"--output={output}",
    )  # fmt: skip
    found = json.loads(output.read_text())
    long, mean = found["programs"]["step"], found["programs"]["step: lengths"]
    short_shape, long_shape = mean["shapes"]
    assert long_shape["seconds"] == long["seconds"] > short_shape["seconds"]
    assert (short_shape["share"], long_shape["share"]) == (0.75, 0.25)
    for key in ("seconds", "seconds_without_overlap"):
        wanted = 0.75 * short_shape[key] + 0.25 * long_shape[key]
        assert mean[key] == pytest.approx(wanted)
    rates = [
        found["programs"][name]["run"]["without_overlap"]["examples_per_second"]
        for name in ("step", "step: lengths")
    ]
    slower = long["seconds_without_overlap"] / mean["seconds_without_overlap"]
    assert rates[1] / rates[0] == pytest.approx(slower)
    assert "inputs 16, targets 24: 75.0% of the batches, " in said
    assert math.isclose(sum(found["lengths"]["inputs"].values()), 8192)
    alone = "--search ranks meshes for the greatest lengths"
    assert alone in plan(capsys, *options, "--topology=cpu:1", "--search", "--lengths=9", code=1)


def test_lengths_of_the_data_are_those_of_its_rows():
    rows = batch_lengths.row_lengths(experiment(), "data")
    # Ann has 1 keys , buys 7 , wins 6 , gives 5 . and EOS
    assert len(rows["inputs"]) == 400 and set(rows["inputs"]) == {15}


def test_the_halves_of_a_step_with_rewards_on_the_host_are_weighed_together(capsys, tmp_path):
    path = histograms(tmp_path / "rows.json", inputs={"10": 3, "90": 1}, targets={"24": 1})
    output = tmp_path / "plan.json"
    rewards = "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "ALPHA=0.5"
    options = [f"--gin.{override}" for override in (*DISTIL, *LONG, *rewards, "LAMBDA=1.0")]
    said = plan(
        capsys, *options, "--topology=cpu:1", "--programs=step", f"--lengths={path}",
        f"--output={output}",
    )  # fmt: skip
    found = json.loads(output.read_text())["programs"]
    mean = found["step: lengths"]
    short, long = (shape["seconds"] for shape in mean["shapes"])
    assert mean["seconds"] == pytest.approx(0.75 * short + 0.25 * long)
    assert long == sum(found[half]["seconds"] for half in ("step: rollout", "step: update"))
    rate = mean["run"]["roofline_lower_bound"]["examples_per_second"]
    assert rate == pytest.approx(16 / mean["seconds"])
    assert said.count("over the lengths of its batches") == 1


IN_PARTS = ("INPUT_LENGTH=96", "TARGET_LENGTH=24", "BATCH_SIZE=32", "LENGTH_BUCKETS='parts'")


def test_parts_are_counted_in_the_order_of_an_epoch():
    """Of 32 rows a batch, the longest quarter has 8: all batches have 10 ± 3 rows of 90 tokens."""
    rows = {"inputs": np.repeat([10, 90], [2800, 1200]), "targets": np.full(4000, 24)}
    found = batch_lengths.batch_lengths(traced(*IN_PARTS), rows)
    assert found.shapes[0] == {"inputs": (96, 16, 16, 16), "targets": 24}
    assert found.shapes[1] == {"inputs": (96, 96, 16, 16), "targets": 24}
    order = permutation(4000, 0, 0).reshape(-1, 32)
    long = (rows["inputs"][order] == 90).sum(axis=1)
    assert found.shares[0] == pytest.approx((long <= 8).mean()) and 0.2 < found.shares[0] < 0.5
    assert found.shares[1] == pytest.approx(((long > 8) & (long <= 16)).mean())
    inputs = [32 * float(np.mean(shape["inputs"])) for shape in found.shapes]
    positions = 125 * (found.mean(inputs) + 32 * 24)
    real = 2800 * 10 + 1200 * 90 + 4000 * 24
    assert found.padding == pytest.approx(1 - real / positions)


def in_parts(*overrides, lengths=(96, 48, 32, 16)):
    """A step program for batches in parts, and the one for whole batches."""
    program = traced(*DISTIL, *LAYERS, *STACKED, *IN_PARTS, "LAMBDA=1.0", *overrides)
    shape = {"inputs": lengths, "targets": 24}
    return batch_lengths.of_shape(program, shape), program


def counted(program):
    (planned,) = programs.step_programs(program).values()
    return program_cost(planned.lower().compile().as_text()), planned.flops(24)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in (
                ("MICROBATCHES=2",),
                ("REMAT=True",),
                ("LORA=@lora.LoRA()",),
                ("MODEL_PARALLELISM=4",),
            )
        ),
    ],
)
def test_a_step_in_parts_counts_as_its_closed_form_and_sends_no_more(overrides):
    lengths = (96, 32) if "MICROBATCHES=2" in overrides else (96, 48, 32, 16)
    parts, whole = in_parts(*overrides, lengths=lengths)
    cost, closed_form = counted(parts)
    assert cost.flops == pytest.approx(closed_form, rel=0.03)
    plain, _ = counted(whole)
    assert cost.flops < 0.8 * plain.flops
    assert cost.by_kind().keys() == plain.by_kind().keys()
    assert cost.wire_bytes < 1.02 * plain.wire_bytes


@pytest.mark.slow
@pytest.mark.parametrize("gemma", [False, True])
def test_a_prefill_in_parts_counts_as_its_closed_form(optimized, gemma):
    student = ("STUDENT_MODEL=@t5gemma.T5GemmaConfig()",) if gemma else ()
    settings = (*DISTIL, *student, *IN_PARTS, "LAMBDA=1.0")
    whole = program_of(*settings, gin_file="tests/decoders/tiny.gin")
    parts = batch_lengths.of_shape(whole, {"inputs": (96, 48, 32, 16), "targets": 24})
    (cost, closed_form), (plain, _) = map(counted, (parts, whole))
    assert cost.flops == pytest.approx(closed_form, rel=0.03)
    assert cost.flops < 0.9 * plain.flops
