"""The tables of docs/configuration.md are the gin files' macros, defaults included."""

import re

import pytest

from gkd.configuration.gin_files import GinReader, Macro, Reference
from tests.docs import pages
from tests.paths import REPOSITORY

PAGE = "docs/configuration.md"
OF_A_RUN = (
    "Student and teacher",
    "Method",
    "Optimisation",
    "Intervals and evaluation",
    "Execution",
)


def macros(*names):
    """The macros that gin files themselves set, as the documentation writes their values."""
    reader = GinReader()
    for name in names:
        reader.read_file(REPOSITORY / name)
    own = [binding for binding in reader.bindings if binding.source.name in names]
    return {binding.macro: written(binding.value) for binding in own if binding.macro}


def written(value):
    if isinstance(value, Reference):
        return f"@{value.selector}"
    return f"%{value.name}" if isinstance(value, Macro) else repr(value)


def documented(*headings):
    """Macro to the rest of its row; a row may name several macros."""
    rows = {}
    for heading in headings:
        for first, *rest in pages.tables(PAGE, heading):
            for macro in re.findall(r"`(\w+)`", first):
                assert macro not in rows, f"{macro} is in two rows"
                rows[macro] = [cell.strip("`") for cell in rest]
    return rows


def test_every_macro_of_a_run_is_documented_with_its_default():
    defaults = {name: cells[0] for name, cells in documented(*OF_A_RUN).items()}
    assert defaults == macros("configs/train.gin")
    assert all(meaning for _, meaning in documented(*OF_A_RUN).values())


def test_every_macro_of_a_sweep_is_documented_with_its_default():
    defaults = {name: cells[0] for name, cells in documented("Sweeps").items()}
    assert defaults == macros("configs/sweeps/common.gin")


def test_every_macro_of_a_task_is_documented_with_the_tasks_that_set_it():
    of_a_run = documented("Macros of a run file")
    rows = documented("Macros of task files")
    files = {path.stem: f"configs/tasks/{path.name}" for path in REPOSITORY.glob("configs/tasks/*")}
    setting: dict[str, set[str]] = {"FILES": {"local_text"}}  # the one that a user must set
    for task, file in files.items():
        for macro in macros(file):
            setting.setdefault(macro, set()).add(task)
    for macro in macros("configs/teacher_outputs.gin"):
        setting.setdefault(macro, set()).add("configs/teacher_outputs.gin")
    own = set(setting) - set(of_a_run) - {"TEACHER_OUTPUTS_TASK"}
    assert set(rows) == own
    for macro, (where, _) in rows.items():
        if where.startswith("tasks with"):
            continue
        named = {name.strip("`") for name in where.split(", ")}
        assert (set(files) if where == "all" else named) == setting[macro], macro
    assert setting["TASK"] == setting["BEST_METRIC"] == set(files)


def test_environment_variables_are_documented():
    text = pages.read(PAGE) + pages.read("docs/pods.md")
    sources = [*REPOSITORY.glob("gkd/**/*.py"), *REPOSITORY.glob("launch/*")]
    named = {name for path in sources for name in re.findall(r"\bGKD_[A-Z_]+\b", path.read_text())}
    missing = {name for name in named if not re.search(rf"\b{name}\b", text)}
    # Between a process and its watcher; of launch scripts' own waiting, ports, runs and arguments.
    assert missing <= {"GKD_JOINED", "GKD_RETRY_SECONDS", "GKD_PORT", "GKD_RUNS"}


@pytest.mark.parametrize("heading", [*OF_A_RUN, "Sweeps", "Macros of task files"])
def test_tables_have_no_empty_meaning(heading):
    assert all(cells[-1] for cells in pages.tables(PAGE, heading))
