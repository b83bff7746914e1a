"""The verb `new`: what it writes, asks for and refuses."""

import io
import sys

import flax.linen as nn
import jax
import pytest

from gkd.checkpoints import formats, save_hf
from gkd.cli import command_line
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.new import data_facts
from gkd.vocabularies import vocabularies

OPTIONS = {
    "train": "pairs.csv", "input_field": "q", "target_field": "a", "teacher": "big/teacher",
    "student": "small/student", "metric": "exact_match",
}  # fmt: skip


@pytest.fixture
def new(tmp_path, monkeypatch, capsys):
    """Runs the verb on 40 pairs; returns (exit code, stdout, stderr)."""
    rows = "".join(f"question {i},{i}\n" for i in range(40))
    (tmp_path / "pairs.csv").write_text(f"q,a\n{rows}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GKD_DATA", raising=False)
    monkeypatch.setattr(data_facts, "load_vocabulary", lambda name: (vocabularies.byte_level(), ""))
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*arguments, **changes):
        options = {name: value for name, value in (OPTIONS | changes).items() if value is not None}
        words = [f"--{name}={value}" for name, value in options.items()]
        code = command_line.main(["new", "mine", *words, *arguments])
        return code, *capsys.readouterr()

    run.folder = tmp_path / "mine"
    return run


def test_it_writes_gin_files_and_the_next_commands(new):
    code, output, errors = new()
    assert (code, errors) == (0, "")
    names = sorted(path.name for path in new.folder.iterdir())
    assert names == ["gkd.gin", "start.gin", "supervised_kd.gin", "task.gin", "teacher.gin"]
    task = (new.folder / "task.gin").read_text()
    # 'question 39' has 11 bytes and '39' two, each with EOS.
    assert "INPUT_LENGTH = 16  # in tokens: median 12, 99% at most 12, longest 12\n" in task
    assert "TARGET_LENGTH = 8  # in tokens: median 3, 99% at most 3, longest 3\n" in task
    assert "{'train': 'pairs.csv[:-4]', 'validation': 'pairs.csv[-4:]'}" in task
    commands = [line.strip() for line in output.splitlines() if "python -m gkd" in line]
    assert commands[1:] == [
        "python -m gkd train --gin_file=mine/teacher.gin",
        "python -m gkd train --gin_file=mine/start.gin",
        "python -m gkd train --gin_file=mine/supervised_kd.gin",
        "python -m gkd train --gin_file=mine/gkd.gin",
        "python -m gkd evaluate --gin_file=mine/gkd.gin",
        "python -m gkd convert mine/gkd mine/for_transformers",
    ]


def test_nothing_is_overwritten(new):
    assert new()[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in new.folder.iterdir()}
    code, _, errors = new(steps=7)
    assert code == 1 and "mine already holds gkd.gin, start.gin" in errors
    assert {path.name: path.stat().st_mtime_ns for path in new.folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"train": None}, "--train is missing: data file"),
        ({"target_field": None}, "--target_field is missing: column of the targets (q, a)"),
        ({"teacher": None}, "--teacher is missing"),
        ({"teacher": "/no/such/model"}, "--teacher is '/no/such/model': there is no such folder"),
        ({"student": "no/such.gin"}, "no/such.gin: no such file"),
        ({"input_field": "Q"}, "did you mean 'q'?"),
        ({"train": "none.csv"}, "none.csv does not exist"),
        ({"validation": "none.csv"}, "none.csv does not exist"),
        ({"train": "semi.csv"}, "has one column, 'q;a': separate its cells by --delimiter=';'"),
        ({"metric": "rouge2"}, "have one word (compared with themselves they score 0 of 100): use"),
        ({"delimiter": ";;"}, "DELIMITER=';;' is not one character"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(new, tmp_path, changes, part):
    (tmp_path / "semi.csv").write_text("q;a\nx;y\n")
    code, _, errors = new(**changes)
    assert code == 1 or code == 2
    assert errors.count("\n") == 1 and part in errors
    assert not new.folder.exists()


def test_too_few_rows_to_hold_out_need_a_validation_file(new, tmp_path):
    (tmp_path / "few.csv").write_text("q,a\nx,y\n")
    assert "too few to hold out a tenth: name a file with --validation" in new(train="few.csv")[2]
    assert new(train="few.csv", validation="pairs.csv")[0] == 0
    assert (
        "{'train': 'few.csv', 'validation': 'pairs.csv'}" in (new.folder / "task.gin").read_text()
    )


@pytest.mark.parametrize("words", ["two words", "1973-03-25", "日本語"])
def test_rouge_suits_targets_of_several_words(new, tmp_path, words):
    (tmp_path / "pairs.csv").write_text("q,a\n" + f"x,{words}\n" * 10)
    assert new(metric="rouge2")[0] == 0


def test_a_model_file_of_the_current_directory_is_found_from_the_new_folder(new, tmp_path):
    (tmp_path / "own.gin").write_text("include 'configs/models/cpu_student.gin'\n")
    assert new(student="own.gin")[0] == 0
    assert f"include '{tmp_path}/own.gin'\n" in (new.folder / "start.gin").read_text()
    run = f"--gin_file={new.folder}/start.gin"
    command_line.configure(command_line.parse_arguments(["train", run]))


def test_on_a_terminal_it_asks_for_what_is_missing(new, monkeypatch, capsys):
    asked = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def answer(question):
        asked.append(question)
        return {"column of the inputs (q, a): ": " q "}.get(question, "")

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", answer)
    assert new(input_field=None)[0] == 0 and len(asked) == 1
    assert "INPUT_FIELD = 'q'\n" in (new.folder / "task.gin").read_text()


def test_without_a_vocabulary_the_lengths_are_said_to_be_unmeasured(new, monkeypatch):
    monkeypatch.setattr(data_facts, "load_vocabulary", lambda name: (None, "no network"))
    code, output, _ = new()
    assert code == 0 and "set INPUT_LENGTH and TARGET_LENGTH: no network" in output
    assert "INPUT_LENGTH = 256  # in tokens, not measured" in (new.folder / "task.gin").read_text()


def test_models_are_looked_at_before_anything_is_written(new, tmp_path):
    narrow = T5Config(
        vocab_size=256, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1,
        num_decoder_layers=1,
    )  # fmt: skip
    params = nn.meta.unbox(jax.jit(as_seq2seq(narrow).init)(jax.random.PRNGKey(0)))
    save_hf(tmp_path / "narrow", narrow, params)
    (tmp_path / "empty").mkdir()
    for changes, part in (
        ({"teacher": "empty"}, "empty is not a checkpoint: give a run directory"),
        ({"teacher": "pairs.csv"}, "pairs.csv is a file: give the folder"),
        (
            {"student": "narrow"},
            "the teacher's tokenizer: its table has 256 rows, the tokenizer 259",
        ),
        ({"student": "configs/methods/gkd.gin"}, "which sets no STUDENT_MODEL: name a model file"),
        ({"student": "no/such.gin"}, "--student=no/such.gin: no such file"),
    ):
        code, _, errors = new(**changes)
        assert code == 1 and part in errors
        assert not new.folder.exists()


def test_a_tab_as_it_is_typed_in_a_shell(new, tmp_path):
    (tmp_path / "pairs.csv").write_text("q\ta\n" + "x\ty\n" * 10)
    assert new(delimiter="\\t")[0] == 0


def test_a_run_that_is_not_trained_yet_names_its_file(new, tmp_path):
    assert new()[0] == 0
    with pytest.raises(
        FileNotFoundError, match="mine/start: .*: train it first, with mine/start.gin"
    ):
        formats.open_checkpoint("mine/start")


def test_the_end_of_the_input_is_no_answer(new, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    code, _, errors = new(teacher=None)
    assert code == 1 and errors.splitlines()[-1].startswith("gkd: error: --teacher is missing")
