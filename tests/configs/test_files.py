"""Every shipped gin file parses for its verb, and method files can follow one another."""

import re

import pytest

from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.configuration.gin_files import GinReader
from tests.configs import grid

METHODS = grid.names("methods")
# All of a method: nothing of the method before it is left.
METHOD_MACROS = {*grid.METHOD_MACROS, "TRAIN_TASK"}
NO_TEACHER = {"TEACHER", "TEACHER_MODEL"}  # methods without one set these two to None
RUN = "configs/runs/xsum/small.gin"


def read(verb, *files, overrides=()):
    return command_line.read_configuration(Command(verb, files, ("MODEL_DIR='x'", *overrides)))


def set_by(name):
    """The macros that a file itself sets, without its includes'."""
    reader = GinReader()
    reader.read_file(grid.REPOSITORY / name)
    return {b.macro: b.value for b in reader.bindings if b.macro and b.source.name == name}


def values(*files):
    """Name to value of all macros, for a run of these files."""
    return {name: repr(value) for name, value in grid.values(read("train", *files)).items()}


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_run_files_parse(verb):
    names = grid.names("runs", "common")
    for name in names:
        read(verb, name)
    folders = [folder for name in names if (folder := set_by(name).get("MODEL_DIR"))]
    assert len(set(folders)) == len(folders) >= 40  # no two runs write into one folder


@pytest.mark.parametrize("task", grid.names("tasks"))
def test_tasks_measure_any_run(task):
    files = ["FILES={'validation': 'x.jsonl'}"] if "local_text" in task else []
    reader = read("evaluate", "configs/runs/flan/small.gin", task, overrides=files)
    own = {name: value for name, value in set_by(task).items() if name != "FILES" or not files}
    assert own and {name: reader.value_of(name) for name in own} == own


@pytest.mark.parametrize("name", grid.names("sweeps", "common"))
def test_all_cells_of_a_sweep_parse(name):
    cells = grid.cells(name)
    assert len({str(cell.result) for cell in cells}) == len(cells) >= 2
    assert len(grid.axes(name)["seed"]) >= 3


@pytest.mark.parametrize("name", grid.names("sweeps", "common"))
def test_a_sweep_makes_what_its_cells_begin_from(name):
    """Every checkpoint and file of the teacher's that a run reads; published ones are given."""
    for cell in grid.cells(name):
        made = {need.result.removesuffix("/summary.json") for need in cell.needs}
        if cell.run is not None:
            continue
        reader = command_line.read_configuration(grid.command_of(cell))
        named = [reader.value_of(n) for n in ("STUDENT", "TEACHER", "TEACHER_OUTPUTS")]
        files = (reader.value_of("FILES") or {}).values()
        made_files = {path for path in files if path.startswith("runs/")}
        read = {path for path in named if path and not path.startswith("runs/public/")} | made_files
        assert made == read, cell.name
        assert read or reader.value_of("STUDENT_MODEL") is not None, "starts at random"


def test_the_figures_of_the_paper_have_their_axes():
    def options(name, axis):
        return set(grid.axes(f"configs/sweeps/{name}.gin")[axis])

    assert {float(label) for label in options("data_fraction", "percent")} >= {0.5, 5, 100}
    assert {float(label) for label in options("lambda_divergence", "lambda")} >= {0, 0.5, 1}
    paper = {"forward_kl", "jsd_0.1", "jsd_0.5", "jsd_0.9", "reverse_kl"}
    assert options("lambda_divergence", "divergence") == paper
    assert options("temperature_divergence", "divergence") == paper
    assert {float(label) for label in options("alpha", "alpha")} >= {0, 1}
    assert len(options("student_size", "student")) == 9
    stems = {name.rpartition("/")[2].removesuffix(".gin") for name in METHODS}
    assert options("methods", "method") == stems - grid.PRIVILEGED - grid.REWARDED


@pytest.mark.parametrize("name", METHODS)
def test_a_method_file_is_short_and_complete(name):
    lines = (grid.REPOSITORY / name).read_text().splitlines()
    assert re.match(r"# .*(\d{4}|Supervised fine-tuning)", lines[0]), "names the paper"
    assert len([line for line in lines if line]) < 24
    found = set_by(name)
    teaches = name.endswith("self_distillation.gin") and {"TEACHER_MODEL"}
    without = values("configs/runs/xsum/common.gin", *_models(), name)["DIVERGENCE"] == "None"
    stem = name.rpartition("/")[2].removesuffix(".gin")
    without = without or stem in grid.PRIVILEGED | grid.REWARDED  # whose teacher is the student
    assert set(found) - {"METHOD"} == (teaches or (NO_TEACHER if without else set()))
    assert repr(found["METHOD"]) == f"@{stem}/experiment.Method()"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_after_another_is_as_if_it_came_first(name):
    before = values("configs/runs/xsum/common.gin", *_models(), name)
    for other in (METHODS[METHODS.index(name) - 1], "configs/methods/gkd_rl.gin"):
        after = values("configs/runs/xsum/common.gin", *_models(), other, name)
        assert {key: after[key] for key in METHOD_MACROS} == {
            key: before[key] for key in METHOD_MACROS
        }


def _models():
    return "configs/models/teacher_t5_1_1_xl.gin", "configs/models/t5_1_1_small.gin"


def test_a_method_after_a_run_changes_the_method_only():
    run = values(RUN)
    assert run["LAMBDA"] == "1.0" and run["TRAIN_STEPS"] == "40000"
    assert run["WARMUP_STEPS"] == "2000" and run["BATCH_SIZE"] == "32"
    changed = {
        key: value
        for key, value in values(RUN, "configs/methods/f_distill.gin").items()
        if run.get(key) != value
    }
    assert changed == {"LAMBDA": "0.5", "DIVERGENCE": "@divergences.total_variation"}


def test_the_grid_says_what_the_paper_says():
    steps = {"xsum": 40000, "wmt14_en_de": 100000, "gsm8k": 40000, "flan": 50000}
    for task, count in steps.items():
        for size in ("small", "base", "large"):
            found = values(f"configs/runs/{task}/{size}.gin")
            assert found["TRAIN_STEPS"] == str(count)
            assert found["STUDENT_MODEL"] == f"@{size}/t5.T5Config()"
            assert found["TEACHER_MODEL"] == "@xl/t5.T5Config()"
            assert found["STUDENT"] == f"'runs/{task}/start_{size}'"
            assert found["TEACHER"] == f"'runs/{task}/teacher'"
    xsum = values(RUN)
    assert (xsum["INPUT_LENGTH"], xsum["TARGET_LENGTH"]) == ("1024", "64")
    assert (xsum["LEARNING_RATE"], xsum["BATCH_SIZE"]) == ("0.0003", "32")
    assert values("configs/runs/gsm8k/start_base.gin")["TRAIN_STEPS"] == "10000"
    assert values("configs/runs/gsm8k/base.gin")["SHOTS"] == "4"


def test_starts_and_teachers_are_where_the_runs_look_for_them():
    made = {set_by(name).get("MODEL_DIR") for name in grid.names("runs")}
    for name in grid.paper_runs():
        found = set_by(name)
        for role in ("STUDENT", "TEACHER"):
            path = found.get(role)
            outside = path is None or path.startswith("runs/public/")
            named = path and f"'{path}'" in (grid.REPOSITORY / name).read_text().split("include")[0]
            assert outside or path in made or named, f"{name}: nothing makes {path}"
