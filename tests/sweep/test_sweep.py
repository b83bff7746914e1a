"""Sweeps: cells against commands written by hand, runs by a stand-in for `python`, the table."""

import json
import os
import pathlib
import shlex
import sys

import pytest

from gkd.sweep import sweep
from tests.paths import TINY
from tests.sweep.sweeping import launches


def test_the_list_is_one_exact_command_a_cell(grid, capsys):
    assert grid("ACTION='list'", "OVERRIDES=['BATCH_SIZE=8']") == 0
    train = f"train --gin_file={TINY} --gin_file=configs/methods/"
    divergence = "--gin.DIVERGENCE=@divergences.generalized_jsd --gin.BETA=0.1"
    divergence += """ '--gin.TEACHER='"'"'it is a teacher'"'"''"""
    sft, jsd = f"{train}sft.gin", f"{train}gkd.gin {divergence}"
    zero, one = "--gin.SEED=0", "--gin.SEED=1 --gin.TRAIN_STEPS=30"

    def place(name):
        return f"""--gin.BATCH_SIZE=8 '--gin.MODEL_DIR='"'"'out/{name}'"'"''"""

    want = [
        f"{sft} {zero} {place('sft/0')}",
        f"{sft} {one} {place('sft/1')}",
        f"{jsd} {zero} {place('jsd_0.1/0')}",
        f"{jsd} {one} {place('jsd_0.1/1')}",
    ]
    lines = capsys.readouterr().out.splitlines()
    # Equal as a shell reads them; and each argument is one that the shell takes as it is.
    assert [shlex.split(line)[3:] for line in lines] == [shlex.split(line) for line in want]
    assert [shlex.split(line)[:3] for line in lines] == [[sys.executable, "-m", "gkd"]] * 4
    assert not pathlib.Path("out").exists() and launches() == []


def test_a_launcher_gets_the_cells_name_and_command(grid, capsys):
    assert grid("ACTION='list'", "LAUNCHER=['env', 'TPU_NAME=a-{name}', 'bash', 'tpu.sh']") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[2])
    assert words[:5] == ["env", "TPU_NAME=a-jsd-0-1-0", "bash", "tpu.sh", "train"]
    assert "--gin.MODEL_DIR='out/jsd_0.1/0'" in words


def test_the_table_holds_what_the_runs_wrote(grid, capsys):
    pathlib.Path("fail").write_text("out/jsd_0.1/1")
    assert grid() == 1
    capsys.readouterr()
    assert grid("ACTION='table'") == 0
    # Lengths of 'out/sft/0' and 'out/jsd_0.1/0' with their quotes.
    want = "| method | runs | exact_match |\n| --- | --- | --- |\n"
    want += "| sft | 2/2 | 11.00 ± 0.00 |\n| jsd_0.1 | 1/2 | 15.00 |\n"
    assert capsys.readouterr().out == want == pathlib.Path("out/table.md").read_text()
    rows = json.loads(pathlib.Path("out/table.json").read_text())["rows"]
    assert [row["options"] for row in rows] == [{"method": "sft"}, {"method": "jsd_0.1"}]
    assert rows[1]["metrics"]["exact_match"] == {"values": [15], "mean": 15.0, "interval": None}
    assert grid("ACTION='table'", "METRICS=['rouge2']") == 1
    assert (
        "no run has the metric 'rouge2'; known: exact_match, seconds_per_step, steps"
        in capsys.readouterr().err
    )


def test_a_divergence_of_one_batch_is_warned_of(grid, capsys):
    claim = "COMPARISONS={'x': {'plus': [{'method': 'sft'}], 'metric': 'on_policy_forward_kl', "
    claim += "'above': 0}}"
    one = "warning: training measures reference_jsd, on_policy_forward_kl on one batch; set EVAL"
    assert grid("ACTION='list'", "METRICS=['rouge2', 'reference_jsd']", claim) == 0
    assert one in capsys.readouterr().err
    assert grid("ACTION='list'", "METRICS=['rouge2']") == 0
    assert grid("ACTION='list'", claim, EVALUATIONS) == 0
    assert "one batch" not in capsys.readouterr().err


EVALUATIONS = """EVALUATIONS={'t0.5': ['EVALUATION_TEMPERATURES=0.5'], 'all': []}"""


def test_evaluations_follow_their_run_and_fill_the_table(grid, capsys):
    pathlib.Path("fail").write_text("out/sft/1")
    assert grid(EVALUATIONS, "ACTION='list'") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    train, evaluate = (shlex.split(line)[3:] for line in lines[:2])
    more = ["--gin.EVALUATION_TEMPERATURES=0.5"]
    more += ["--gin.evaluate.evaluate.output='out/sft/0/evaluation-t0.5.json'"]
    assert evaluate == ["evaluate", *train[1:], *more]
    assert grid(EVALUATIONS) == 1
    cells = ("sft/0", "sft/1", "jsd_0.1/0", "jsd_0.1/1")
    names = ("", "/evaluation-t0.5.json", "/evaluation-all.json")
    want = [f"out/{cell}{name}" for cell in cells for name in names]
    assert launches() == [place for place in want if not place.startswith("out/sft/1/")]
    capsys.readouterr()
    assert (
        grid(
            EVALUATIONS,
            "ACTION='table'",
            "METRICS=['exact_match', 'teacher/exact_match', 'beam_4/exact_match']",
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[2:4] == [
        "| sft | t0.5 | 1/2 | 7.00 | 9.00 | 8.00 |",
        "| sft | all | 1/2 | 7.00 | 9.00 | 8.00 |",
    ]
    # What was measured before its run went on is measured again.
    before = launches()
    before_the_run = pathlib.Path("out/jsd_0.1/0/summary.json").stat().st_mtime_ns - 10**9
    for name in names[1:]:
        os.utime(f"out/jsd_0.1/0{name}", ns=(before_the_run, before_the_run))
    pathlib.Path("fail").unlink()
    assert grid(EVALUATIONS) == 0
    assert launches()[len(before) :] == [place for place in want if "sft/1" in place] + want[7:9]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("ACTION='tabel'", "ACTION is 'tabel': choose one of run, list, status, table"),
        ("MAX_PARALLEL=0", "MAX_PARALLEL is 0: use 1 or more"),
        ("RETRIES=-1", "RETRIES is -1: use 0 or more"),
        ("AVERAGE_OVER='sed'", "AVERAGE_OVER is 'sed', but the axes are method, seed: choose one"),
        ("sweep.sweep.axes={}", "axes is empty"),
        ("sweep.sweep.axes=['seed']", "axes is ['seed']: use a dictionary"),
        ("sweep.sweep.axes={'seed': 3}", "axis 'seed' of the sweep is 3: write"),
        ("sweep.sweep.axes={'seed': {'0': 3}}", "option 0: 3 in place of a list"),
        ("PREREQUISITES=3", "PREREQUISITES is 3: use a dictionary"),
        ("PREREQUISITES={'a': 3}", "prerequisite a is 3: write"),
        ("sweep.sweep.axes={'seed': {}}", "axis seed of the sweep has no options"),
        ("sweep.sweep.axes={'seed': {'..': []}}", "the option '..' names a folder"),
        ("sweep.sweep.axes={'seed': {'a/b': []}}", "the option 'a/b' names a folder"),
        ("sweep.sweep.axes={'seed': {0: ['SEED=0']}}", "the option 0 names a folder"),
        ("sweep.sweep.axes={'seed': {'0': 'SEED=0'}}", "option 0: 'SEED=0' in place of a list"),
        ("sweep.sweep.axes={'seed': {'0': ['SEED']}}", "option 0: 'SEED' in place of a list"),
        ("sweep.sweep.axes={'seed': {'0': ['SEDE=0']}}", "cell 0: --gin.SEDE=0: nothing uses"),
        ("sweep.sweep.axes={'a': {'0': ['no.gin']}}", "cell 0: --gin_file=no.gin: no such file"),
        ("sweep.sweep.axes={'prerequisite': {'0': []}}", "axis 'prerequisite' of the sweep: the n"),
        (
            "EVALUATIONS={'a': []}\nsweep.sweep.axes={'evaluation': {'0': []}}",
            "axis 'evaluation' of the sweep: the name is reserved; choose another",
        ),
        ("OVERRIDES=['MODEL_DIR=\"x\"']", 'MODEL_DIR="x": a cell\'s MODEL_DIR is'),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(grid, override, part, capsys):
    assert grid(*override.split("\n")) in (1, 2)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and part in errors
    assert launches() == []


STARTED = (
    "sweep.sweep.axes={'method': {'start': ['configs/methods/sft.gin'], "
    "'gkd': ['configs/methods/gkd.gin', \"STUDENT='out/start/{seed}'\", \"TEACHER='t'\"]}, "
    "'seed': {'0': ['SEED={seed}'], '1': ['SEED={seed}']}}"
)


def test_a_cell_can_start_from_an_earlier_one_with_its_options(grid, capsys):
    assert grid(STARTED, "ACTION='list'") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--gin.STUDENT='out/start/1'" in shlex.split(lines[3])
    assert "--gin.STUDENT='out/start/0'" in shlex.split(lines[2])
    assert [f"--gin.SEED={i % 2}" in shlex.split(line) for i, line in enumerate(lines)] == [
        True
    ] * 4
    pathlib.Path("fail").write_text("out/start/1")
    assert grid(STARTED, "RETRIES=0") == 1
    ran = [name.strip("'") for name in launches()]
    assert ran == ["out/start/0", "out/start/1", "out/gkd/0"]  # gkd/1 waits for its start


def test_the_verdict_decides_what_the_runs_wrote(grid, capsys):
    # The stand-in's exact match is the length of a cell's path with its quotes: 11 and 15.
    claim = ("CLAIM='longer'", "COMPARISONS={'x': {'plus': [{'method': 'jsd_0.1'}], 'minus': "
             "[{'method': 'sft'}], 'metric': 'exact_match', 'above': 3.5}}")  # fmt: skip
    assert grid(*claim, "ACTION='verdict'") == 0
    assert capsys.readouterr().out.startswith("longer: **incomplete**")
    assert grid() == 0
    capsys.readouterr()
    assert grid(*claim, "ACTION='verdict'") == 0
    text = capsys.readouterr().out
    assert text.startswith("longer: **holds**") and "| x | 2 | +4.00 ± 0.00 | holds |" in text
    assert json.loads(pathlib.Path("out/verdict.json").read_text())["verdict"] == "holds"
    assert grid("ACTION='verdict'") == 1
    assert "this sweep has no CLAIM with COMPARISONS" in capsys.readouterr().err


def test_results_of_another_configuration_are_marked_in_what_is_written(grid, capsys):
    claim = ("CLAIM='longer'", "COMPARISONS={'x': {'plus': [{'method': 'jsd_0.1'}], 'minus': "
             "[{'method': 'sft'}], 'metric': 'exact_match', 'above': 3.5}}")  # fmt: skip
    assert grid() == 0
    assert grid("ACTION='table'", *claim) == 0 and grid("ACTION='verdict'", *claim) == 0
    for name in ("table", "verdict"):
        assert json.loads(pathlib.Path(f"out/{name}.json").read_text())["warnings"] == []
        assert "Warning" not in pathlib.Path(f"out/{name}.md").read_text()
    for seed in "01":
        launch = {"bindings": {"SEED": "7", "train.train.seed": "%SEED"}}
        pathlib.Path(f"out/sft/{seed}/launches.jsonl").write_text(json.dumps(launch) + "\n")
    capsys.readouterr()
    for name in ("table", "verdict"):
        assert grid(f"ACTION='{name}'", *claim) == 0
        out, errors = capsys.readouterr()
        assert errors.startswith("sweep: warning: complete, but with another configuration: sft/0 ")
        warnings = json.loads(pathlib.Path(f"out/{name}.json").read_text())["warnings"]
        assert len(warnings) == 2 and "sft/1 (" in warnings[1] and "seed 7 → 1" in warnings[1]
        text = pathlib.Path(f"out/{name}.md").read_text()
        assert text == out and text.endswith(f"\nWarning: {warnings[1]}\n")


@pytest.mark.parametrize(
    "setting, error",
    [
        ("EVALUATIONS={'a': [], 'b': []}", "2 runs have {'method': 'jsd_0.1', 'seed': '0'}"),
        ("BASELINE={'method': 'none'}", "BASELINE is {'method': 'none'}, which no row"),
    ],
)
def test_results_without_their_rows_are_refused_before_any_run(grid, capsys, setting, error):
    claim = ("CLAIM='longer'", "COMPARISONS={'x': {'plus': [{'method': 'jsd_0.1'}], "
             "'metric': 'exact_match', 'above': 3.5}}")  # fmt: skip
    assert grid(*claim, setting) == 1
    assert error in capsys.readouterr().err and launches() == []


def test_an_option_is_filled_into_overrides_and_evaluations_too(grid):
    run, evaluation = sweep.plan(
        "out", [str(TINY)], {"seed": {"3": ["SEED={seed}"]}}, overrides=["STUDENT='starts/{seed}'"],
        evaluations={"all": ["EVALUATION_SAMPLES={seed}"]},
    )  # fmt: skip
    for cell in (run, evaluation):
        assert {"--gin.SEED=3", "--gin.STUDENT='starts/3'"} <= set(cell.arguments)
    assert "--gin.EVALUATION_SAMPLES=3" in evaluation.arguments
