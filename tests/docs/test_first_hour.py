"""The page of the first hour, followed from its table of pairs to a student for transformers."""

import importlib.util
import json
import os
import pathlib
import runpy

import gin
import pytest
from safetensors.numpy import load_file

from gkd.checkpoints import save_hf
from gkd.cli import command_line
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.new import data_facts
from gkd.vocabularies import vocabularies
from tests.docs import pages
from tests.paths import REPOSITORY
from tests.random_params import random_params

PAGE = "docs/first_hour.md"
EXAMPLE = REPOSITORY / "examples" / "dates"
FILES = ("task.gin", "teacher.gin", "start.gin", "supervised_kd.gin", "gkd.gin")
TEACHER = T5Config(
    vocab_size=300, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
    num_decoder_layers=1,
)  # fmt: skip
STUDENT = """
from __gin__ import dynamic_registration
from gkd.models import t5
tiny/t5.T5Config.vocab_size = 300
tiny/t5.T5Config.emb_dim = 8
tiny/t5.T5Config.num_heads = 1
tiny/t5.T5Config.head_dim = 8
tiny/t5.T5Config.mlp_dim = 16
tiny/t5.T5Config.num_encoder_layers = 1
tiny/t5.T5Config.num_decoder_layers = 1
STUDENT_MODEL = @tiny/t5.T5Config()
"""


@pytest.fixture
def place(tmp_path, monkeypatch, one_device):
    """A folder to follow the page in, as the repository's is."""
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    gin.clear_config()


def follow(replacements, more=(), without=()):
    """Runs the page's commands of gkd with other words for some; those `without` are not run."""
    done = []
    for where, _, words in pages.commands(PAGE):
        if words[:3] != ["python", "-m", "gkd"]:
            continue
        arguments = [replacements.get(word, word) for word in words[3:]]
        if set(arguments) & set(without):
            continue
        trains = arguments[0] in ("train", "evaluate") and "--help" not in arguments
        assert command_line.main([*arguments, *(more if trains else ())]) == 0, where
        done.append(arguments[0])
    return done


def test_the_page_leads_from_pairs_to_a_student_in_another_format(place, capsys):
    params = random_params(as_seq2seq(TEACHER))
    save_hf(place / "teacher", TEACHER, params, bytes_vocabulary=True)
    tokenizer = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}
    (place / "teacher" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (place / "student.gin").write_text(STUDENT)
    replacements = {
        "google/flan-t5-small": "teacher", "google/flan-t5-large": "teacher", "300": "1",
        "configs/models/cpu_student.gin": "student.gin", "--gin.TRAIN_STEPS=60": "--gin.SEED=1",
    }  # fmt: skip
    # To be quick: an untrained teacher, and what other tests run.
    runs = place / "runs" / "dates"
    assert command_line.main(["convert", "teacher", str(runs / "teacher"), "--to=gkd"]) == 0
    without = (
        "--gin_file=runs/dates/teacher.gin", "--gin_file=runs/dates/supervised_kd.gin",
        "--gin.EVALUATION_BEAMS=4", "--help",
    )  # fmt: skip
    short = ["--gin.EVALUATION_EXAMPLES=4", "--gin.LOG_EVERY=1", "--gin.EVALUATE_EVERY=0"]
    done = follow(replacements, short, without)
    assert done == ["new", "train", "train", "evaluate", "infer", "convert", "new"]
    for name in ("start", "gkd"):
        assert json.loads((runs / name / "summary.json").read_text())["steps"] == 1
    launch = json.loads((runs / "gkd" / "launches.jsonl").read_text())
    assert pathlib.Path(launch["checkpoints"]["STUDENT"]).is_relative_to(runs / "start")
    assert pathlib.Path(launch["checkpoints"]["TEACHER"]).is_relative_to(runs / "teacher")
    log = [json.loads(line) for line in (runs / "gkd" / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/on_policy"] for row in log if "train/on_policy" in row] == [1.0]
    evaluated = json.loads((runs / "gkd" / "evaluation-validation.json").read_text())
    assert evaluated["examples"] == 4 and "teacher" in evaluated
    samples = (runs / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 4 * (len((EXAMPLE / "pairs.tsv").read_text().splitlines()) - 1)
    written = load_file(runs / "for_transformers" / "model.safetensors")
    assert written["shared.weight"].shape == (300, 8)
    config = json.loads((runs / "for_transformers" / "config.json").read_text())
    assert config["d_model"] == 8 and config["model_type"] == "t5"


@pytest.mark.slow
def test_the_page_with_flan_t5_small(place, optimized):
    """Minutes: with GKD_FLAN_T5_SMALL, the folder that the fixtures' tool writes."""
    folder = os.environ.get("GKD_FLAN_T5_SMALL", "")
    if not pathlib.Path(folder, "config.json").is_file():
        pytest.skip(
            "needs a FLAN-T5-small: python SHARED/tools/flan_t5_small.py DIR, then set "
            "GKD_FLAN_T5_SMALL=DIR"
        )
    follow({"google/flan-t5-small": folder, "google/flan-t5-large": folder})
    runs = place / "runs" / "dates"
    scores = {
        name: json.loads((runs / name / "summary.json").read_text())["evaluation"]["exact_match"]
        for name in ("teacher", "start", "supervised_kd", "gkd")
    }
    assert scores["teacher"] > 90 and scores["gkd"] > scores["start"]
    if importlib.util.find_spec("transformers"):
        generate = runpy.run_path(str(REPOSITORY / "examples" / "generate_with_transformers.py"))
        text = generate["main"](str(runs / "for_transformers"), "Sunday, 25 March 1973")
        assert text[:4] == "1973"


def test_the_example_is_what_new_writes(place, shared, monkeypatch):
    pieces = vocabularies.t5(str(shared / "data" / "t5_vocab" / "spiece.model"))
    monkeypatch.setattr(data_facts, "load_vocabulary", lambda name: (pieces, ""))
    (words,) = [w[3:] for _, _, w in pages.commands(PAGE) if w[3:5] == ["new", "runs/dates"]]
    assert command_line.main(words) == 0
    for name in FILES:
        assert (place / "runs" / "dates" / name).read_text() == (EXAMPLE / name).read_text(), name


def test_the_page_shows_the_files_of_the_example():
    shown = {block.file: block.text for block in pages.blocks(PAGE, "gin")}
    assert set(shown) == {"task.gin", "gkd.gin"}
    for name, text in shown.items():
        assert text == (EXAMPLE / name).read_text()


def test_the_dates_of_the_example_are_right():
    import datetime

    rows = [line.split("\t") for line in (EXAMPLE / "pairs.tsv").read_text().splitlines()]
    assert rows.pop(0) == ["text", "date"] and len(rows) == len({text for text, _ in rows}) == 600
    for text, date in rows:
        day = datetime.date.fromisoformat(date)
        words = text.replace(",", " ").replace(".", " ").replace("/", " ").split()
        assert str(day.year) in words and str(day.day) in "".join(words)
        if day.strftime("%A")[:3] in text:
            assert text.startswith(day.strftime("%A"))
