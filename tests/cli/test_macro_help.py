"""The help text of verbs with gin files lists every macro with its value and its meaning."""

import re

import gin
import pytest

from gkd.cli import command_line, macro_help
from gkd.configuration.gin_files import ConfigError
from tests.paths import REPOSITORY


def shown(text):
    """Macro to (value, meaning) as a reader of the text sees them."""
    found, name = {}, None
    for line in text.splitlines():
        macro = re.fullmatch(r"  ([A-Z_]+)(?: = (.*)| must be set| \(.*\))", line)
        if macro:
            name = macro[1]
            assert name not in found, f"{name} is listed twice"
            found[name] = [macro[2], ""]
        elif line.startswith("        ") and name:
            found[name][1] += line.strip() + " "
        else:
            name = None
    return found


@pytest.mark.parametrize(
    ("verb", "files"),
    [
        ("train", ["train.gin", "prompt.gin", "teacher_outputs.gin", "tasks/*.gin"]),
        ("sweep", ["sweeps/common.gin"]),
    ],
)
def test_help_lists_every_macro_that_the_gin_files_set_with_a_meaning(verb, files, capsys):
    assert command_line.main([verb, "--help"]) == 0
    listed = shown(capsys.readouterr().out)
    texts = [path.read_text() for name in files for path in REPOSITORY.glob(f"configs/{name}")]
    assigned = {name for text in texts for name in re.findall(r"^([A-Z_]+) =", text, re.M)}
    if verb == "train":
        assigned |= {"MODEL_DIR", "FILES"}
        assigned -= {"CHECKPOINT_STEP", "TEACHER_OUTPUTS_TASK"}  # of evaluate; of one method
    assert set(listed) == assigned
    assert not [name for name, (_, meaning) in listed.items() if not meaning]


def test_help_of_plan_lists_its_options_and_the_macros_of_train(capsys, tmp_path):
    assert command_line.main(["plan", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--gin_file=FILE" in said and "--topology TOPOLOGY" in said
    assert set(shown(said)) == set(shown(macro_help.macro_help("train")))
    run = tmp_path / "my.gin"
    run.write_text("BATCH_SIZE = 4\n")
    assert command_line.main(["plan", "--gin_file", str(run), "--help"]) == 0
    assert shown(capsys.readouterr().out)["BATCH_SIZE"][0] == "4"


def test_defaults_are_the_files():
    listed = shown(macro_help.macro_help("train"))
    assert listed["LEARNING_RATE"][0] == "0.0003" and listed["MODEL_DIR"][0] is None
    assert listed["EVALUATION_SPLIT"] == ["'validation'", "split of the task "]
    assert listed["PREFIX"] == ["''", "text before every input "]


def test_evaluate_lists_what_it_reads_only():
    listed = shown(macro_help.macro_help("evaluate"))
    assert {"EVALUATION_BEAMS", "CHECKPOINT_STEP", "TEACHER", "REWARD", "FILES"} <= set(listed)
    assert not {"TRAIN_STEPS", "LEARNING_RATE", "DRY_RUN", "STUDENT", "REMAT"} & set(listed)
    assert "CHECKPOINT_STEP" not in shown(macro_help.macro_help("train"))


def test_with_files_the_values_of_that_run_are_listed_with_their_places(tmp_path, capsys):
    run = tmp_path / "my.gin"
    run.write_text(
        "include 'configs/tasks/local_text.gin'\ninclude 'configs/methods/gkd.gin'\n"
        "FILES = {\n    'train': 'a.tsv',\n}\n\nBATCH_SIZE = 4  # mine\nOWN = 3  # my own\n"
    )
    arguments = ["train", "--help", f"--gin_file={run}", "--gin.LAMBDA=0.5"]
    assert command_line.main(arguments) == 0
    listed = shown(capsys.readouterr().out)
    assert listed["BATCH_SIZE"][0] == f"4  ({run}:7)"
    assert listed["BATCH_SIZE"][1].startswith("prompts per step")
    assert listed["LAMBDA"][0] == "0.5  (--gin.LAMBDA=0.5)"
    assert listed["FILES"][0] == f"{{'train': 'a.tsv'}}  ({run}:3)"
    assert listed["METHOD"][0].startswith("@gkd/experiment.Method()  (configs/methods/gkd.gin:")
    assert listed["OWN"] == ["3", "my own "]
    assert "SHOTS" not in listed


def test_a_missing_file_is_an_error_of_one_line(capsys):
    assert command_line.main(["train", "--help", "--gin_file=no.gin"]) != 0
    error = capsys.readouterr().err
    assert "no.gin" in error and error.count("\n") == 1
    with pytest.raises(ConfigError):
        macro_help.macro_help("train", ["no.gin"])


def test_the_examples_of_the_help_text_configure(capsys):
    command_line.main(["--help"])
    examples = re.findall(r"'?(--gin\.[\w.]+=[^\s';)]+)", capsys.readouterr().out)
    examples = [example for example in examples if "NAME" not in example]
    assert len(examples) == 4
    run = "--gin_file=configs/runs/small_arithmetic/student.gin"
    command_line.configure(command_line.parse_arguments(["train", run, *examples]))
    assert gin.query_parameter("experiment.Schedule.keep_last") == 5
    gin.clear_config()
