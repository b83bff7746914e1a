"""Every run file and method parses for both verbs, and the README's commands name what exists."""

import pathlib
import re

import pytest

from gkd.jobs import command_line

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RUNS = sorted(
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "configs/runs").rglob("*.gin")
    if path.name != "common.gin"
)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_file_parses(run, verb):
    arguments = [verb, f"--gin_file={run}", "--gin.MODEL_DIR='somewhere'"]
    assert callable(command_line.configure(command_line.parse_arguments(arguments)))


@pytest.mark.parametrize(
    "method", sorted(p.stem for p in (REPOSITORY / "configs/methods").iterdir())
)
def test_a_method_parses_with_any_task(method):
    for task in ("arithmetic", "xsum", "wmt14_en_de", "gsm8k_cot"):
        arguments = [
            "train",
            f"--gin_file=configs/tasks/{task}.gin",
            f"--gin_file=configs/methods/{method}.gin",
            "--gin.MODEL_DIR='somewhere'",
        ]
        assert callable(command_line.configure(command_line.parse_arguments(arguments)))


def test_the_readme_is_finished_and_names_files_that_exist():
    text = (REPOSITORY / "README.md").read_text()
    assert "QUICKSTART_OUTPUT" not in text and "RESULT_TRANSLATION" not in text
    named = re.findall(r"(?:configs|launch|gkd)/[\w/.]+\.(?:gin|sh|py)", text)
    assert len(named) > 8
    missing = [name for name in named if not (REPOSITORY / name).is_file()]
    assert not missing
