"""The tables of docs/configuration.md are the gin files' macros, defaults included."""

import dataclasses
import re

import pytest

from gkd.cli.macro_help import entries
from gkd.configuration import experiment
from gkd.configuration.gin_files import GinReader, Macro
from tests.docs import pages
from tests.paths import REPOSITORY

PAGE = "docs/configuration.md"


def macros(name, folder=""):
    """The macros that a gin file sets, itself or by includes out of a folder, with their values."""
    reader = GinReader()
    reader.read_file(REPOSITORY / name)
    own = [b for b in reader.bindings if b.source.name.startswith(folder or name)]
    return {binding.macro: repr(binding.value) for binding in own if binding.macro}


def documented(heading):
    """First cell to the others of the rows below a heading; a row may name several macros."""
    rows = {}
    for first, *rest in pages.tables(PAGE, heading):
        for name in re.findall(r"`(\w+)`", first):
            assert name not in rows, f"{name} is in two rows"
            rows[name] = [cell.strip("`") for cell in rest]
    return rows


def set_by():
    """(object, field) to the macro that sets it in configs/train.gin."""
    reader = GinReader()
    reader.read_file(REPOSITORY / "configs/train.gin")
    found = {}
    for binding in reader.bindings:
        kind = binding.selector.rpartition(".")[2]
        if not binding.macro and isinstance(binding.value, Macro):
            found[kind.replace("MethodChanges", "Method"), binding.parameter] = binding.value.name
    return found


@pytest.mark.parametrize("kind", experiment.OBJECTS, ids=lambda kind: kind.__name__)
def test_every_field_of_an_object_is_documented_with_its_macro_and_default(kind):
    values, macro_of = macros("configs/train.gin"), set_by()
    rows = documented(kind.__name__)
    assert set(rows) == {field.name for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(kind):
        macro, default, meaning = rows[field.name]
        assert macro == macro_of.get((kind.__name__, field.name), "–"), field.name
        assert meaning
        if kind is experiment.Method and macro != "–":
            assert values[macro] == "None"  # keeps the method's own
        if kind is experiment.Method or macro == "–":
            assert default == repr(field.default), field.name
        else:
            assert default == values.get(macro, "–"), field.name


def test_every_macro_of_a_run_is_documented_with_its_default():
    defaults = {name: cells[0] for name, cells in documented("Other macros").items()}
    for kind in experiment.OBJECTS:
        for macro, default, _ in documented(kind.__name__).values():
            assert macro == "–" or macro not in defaults
            defaults[macro] = "None" if kind is experiment.Method else default
    must_be_set = {"MODEL_DIR", "TASK", "INPUT_LENGTH", "TARGET_LENGTH", "BEST_METRIC"}
    assert {name for name, default in defaults.items() if default == "–"} == must_be_set
    given = {name: default for name, default in defaults.items() if name not in must_be_set}
    assert given == {"–": given["–"], **macros("configs/train.gin")}


def test_every_macro_of_a_sweep_is_documented_with_its_default():
    defaults = {name: cells[0] for name, cells in documented("Sweeps").items()}
    assert defaults == macros("configs/sweeps/common.gin")


def test_a_macro_has_the_same_meaning_on_the_page_and_in_the_help_text():
    meanings = {}
    for name in ("configs/train.gin", "configs/sweeps/common.gin"):
        text = (REPOSITORY / name).read_text()
        meanings |= {entry.macro: entry.text for entry in entries(text) if entry.macro}
    expected = {
        macro.strip("`"): meaning
        for heading in ("Other macros", "Sweeps")
        for macro, _, meaning in pages.tables(PAGE, heading)
    }
    for kind in experiment.OBJECTS:
        for macro, default, meaning in documented(kind.__name__).values():
            own = f"({default}) " if kind is experiment.Method else ""
            expected[macro] = own + meaning
    del expected["–"]
    plain = {
        macro: re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", meaning).replace("`", "")
        for macro, meaning in expected.items()
    }
    assert plain == meanings


def test_every_macro_of_a_task_is_documented_with_the_tasks_that_set_it():
    rows = documented("Macros of task files")
    files = {path.stem: f"configs/tasks/{path.name}" for path in REPOSITORY.glob("configs/tasks/*")}
    setting: dict[str, set[str]] = {"FILES": {"local_text"}}  # the one that a user must set
    for task, file in files.items():
        for macro in macros(file, "configs/tasks/"):
            setting.setdefault(macro, set()).add(task)
    for file in ("configs/teacher_outputs.gin", "configs/prompt.gin"):
        for macro in macros(file):
            setting.setdefault(macro, set()).add(file)
    every = {"TASK", "INPUT_LENGTH", "TARGET_LENGTH", "BEST_METRIC"}  # of all task files
    own = set(setting) - every - {"TEACHER_OUTPUTS_TASK"}
    assert set(rows) == own
    for macro, (where, _) in rows.items():
        if where.startswith("tasks with"):
            continue
        named = {name.strip("`") for name in where.split(", ")}
        assert (set(files) if where == "all" else named) == setting[macro], macro
    assert all(setting[macro] == set(files) for macro in every)


def test_environment_variables_are_documented():
    text = pages.read(PAGE) + pages.read("docs/pods.md")
    sources = [*REPOSITORY.glob("gkd/**/*.py"), *REPOSITORY.glob("launch/*")]
    named = {name for path in sources for name in re.findall(r"\bGKD_[A-Z_]+\b", path.read_text())}
    missing = {name for name in named if not re.search(rf"\b{name}\b", text)}
    # Between a process and its watcher; of launch scripts' own waiting, ports, runs and arguments.
    assert missing <= {"GKD_JOINED", "GKD_RETRY_SECONDS", "GKD_PORT", "GKD_RUNS"}
