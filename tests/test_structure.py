"""The structure of the repository: mirrored tests, one-way imports, sizes, described packages."""

import ast
import pathlib

import pytest

from tests.paths import REPOSITORY

# Packages of gkd/; each may import those after it only.
ORDER = (
    "quickstart", "sweep", "report", "cli", "new", "plan", "train", "convert", "evaluate", "infer",
    "runs", "configuration", "checkpoints", "hugging_face", "tensor_files", "data", "synthetic",
    "tables", "metrics", "vocabularies", "auxiliary_losses", "decode", "distill", "program_cost",
    "decoders", "models", "files", "parallel",
)  # fmt: skip
PURE = ("models", "decoders", "auxiliary_losses", "decode", "distill", "parallel")
# Modules without a test file of their name, and why.
WITHOUT_TESTS = {
    "cli/arguments.py": "cli/test_command_line.py and test_plain_arguments.py parse commands",
    "configuration/configured_experiment.py": "one call of gin; tests/step_programs.py makes it",
    "configuration/configurable_settings.py": "tables; configuration/test_verb_settings.py",
    "distill/types.py": "dataclasses without methods",
    "models/t5_stacks.py": "models/test_t5.py and models/test_dropout.py",
    "tensor_files/tensor.py": "a dataclass without methods",
    "train/build.py": "train/wiring.py builds its programs",
    "train/model_flops.py": "plan/test_programs.py counts its figures in compiled programs",
    "train/step_program.py": "train/wiring.py and configs/traces.py build them",
    "train/training_loop.py": "train/test_train.py",
}
MODULES = sorted((REPOSITORY / "gkd").rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def name_of(path):
    return path.relative_to(REPOSITORY).as_posix().removeprefix("gkd/")


def imported_modules(path):
    """Dotted names of all imports of a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(path):
    tree = ast.walk(ast.parse(path.read_text()))
    return [node for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_every_module_has_a_test_file_of_its_name():
    missing = set()
    for path in MODULES:
        place = pathlib.PurePosixPath(name_of(path))
        test = REPOSITORY / "tests" / place.parent / f"test_{place.name}"
        if path.name != "__init__.py" and not test.is_file():
            missing.add(place.as_posix())
    assert missing == set(WITHOUT_TESTS)


def test_no_test_module_is_imported():
    for path in TESTS:
        parts = [part for name in imported_modules(path) for part in name.split(".")]
        assert not [part for part in parts if part.startswith("test_")], path.name


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package):
    later = {*ORDER[ORDER.index(package) :], "errors", "step_names", "__version__"}
    for path in (REPOSITORY / "gkd" / package).glob("*.py"):
        names = [name.split(".") for name in imported_modules(path)]
        wrong = {parts[1] for parts in names if parts[0] == "gkd" and parts[1:]} - later
        assert not wrong, f"{name_of(path)} imports {', '.join(wrong)}"
        roots = {parts[0] for parts in names}
        if package in PURE:
            assert not roots & {"tensorflow", "seqio", "gin", "orbax"}, name_of(path)


def test_the_modules_that_all_may_import_import_nothing_of_gkd():
    for name in ("errors.py", "step_names.py"):
        found = set(imported_modules(REPOSITORY / "gkd" / name))
        assert not [one for one in found if one.startswith("gkd") and "errors" not in one]


def test_packages_are_few_small_and_described():
    folders = {path.parent for path in MODULES} - {REPOSITORY / "gkd"}
    assert {folder.name for folder in folders} == set(ORDER)
    for folder in folders:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= 16, folder.name
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert "\nIn: " in text and " Out: " in text, f"gkd/{folder.name}/__init__.py"


def test_files_are_short():
    sizes = {path: len(path.read_text().splitlines()) for path in [*MODULES, *TESTS]}
    assert not {name_of(path) for path, size in sizes.items() if size > 400}


def test_functions_are_short_and_have_few_parameters():
    for node in [node for path in MODULES for node in functions(path)]:
        given = node.args
        count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
        own = count - bool(given.args and given.args[0].arg in ("self", "cls"))
        lines = node.end_lineno - node.lineno + 1
        assert own <= 12 and lines <= 80, f"{node.name}: {own} parameters, {lines} lines"
