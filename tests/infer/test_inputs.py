"""The verb `infer` over a task's split: SeqKD's data set, and a teacher's top-k for later."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from gkd.configuration.task_files import read_task
from gkd.data import pipeline
from gkd.data.offline_teacher import OfflineTeacher
from gkd.infer import infer
from gkd.infer.inputs import open_source
from gkd.tables.delimited import TsvFormat
from tests.infer.inference import USABLE, bytes_of, usable_log_probs

# Training and infer must see the same bytes, line breaks and indentation included.
PAIRS = [(f"document\n\t {i} " + "é" * i, f"{i}\n ü{'x' * (i % 4)}") for i in range(11)]
TOP_K = {"score": True, "top_k_log_probs": 5, "max_length": 7}


@pytest.fixture
def task(run):
    """A gin file of a summarisation task over bytes: 11 rows to train, 2 to validate."""
    rows = [{"document": document, "summary": summary} for document, summary in PAIRS]
    files = {"train": str(run.write("t.jsonl", rows)), "dev": str(run.write("d.jsonl", rows[3:5]))}
    lines = [
        "from __gin__ import dynamic_registration",
        "from gkd.data import tasks",
        "from gkd.vocabularies import vocabularies",
        "VOCABULARY = @vocabularies.byte_level()",
        "MAX_EXAMPLES = None",
        f"FILES = {files!r}",
        "tasks.summarization.vocabulary = %VOCABULARY",
        "tasks.summarization.files = %FILES",
        "tasks.summarization.input_field = 'document'",
        "tasks.summarization.target_field = 'summary'",
        "tasks.summarization.max_examples = %MAX_EXAMPLES",
        "TASK = @tasks.summarization()",
        "INPUT_LENGTH = 64",
        "TARGET_LENGTH = 7",
        "BEST_METRIC = 'rouge2'",
    ]
    return run.write("task.gin", lines)


def test_a_splits_top_k_is_the_teacher_of_its_shuffled_batches(run, task, model):
    rows = run.rows(None, task=task, **TOP_K)
    assert [row["index"] for row in rows] == list(range(11))
    inputs = [f"summarize: {document}" for document, _ in PAIRS]
    assert [row["input"] for row in rows] == inputs
    assert [row["target"] for row in rows] == [summary for _, summary in PAIRS]
    assert "11 inputs of task xsum, split train, with targets" in run.stdout
    wanted = []
    for row, (_, summary) in zip(rows, PAIRS, strict=True):
        tokens = bytes_of(summary)[:7]
        assert row["target_tokens"] == tokens
        wanted.append(usable_log_probs(model, row["input"], tokens))
        order = np.argsort(-wanted[-1], axis=-1)[:, :5]
        np.testing.assert_array_equal(row["target_top_ids"], order)
        best = np.take_along_axis(wanted[-1], order, axis=-1)
        np.testing.assert_allclose(row["target_top_log_probs"], best, atol=1e-4)

    teacher = OfflineTeacher.read(str(run.folder / "out.jsonl"), 6, rows=11, vocabulary_size=300)
    batches = pipeline.training_batches(read_task(str(task)), "train", 4, 64, 6, seed=1)
    for _ in range(4):
        batch = next(batches)
        ids, log_probs = teacher.rows(batch["rows"], batch["decoder_target_tokens"])
        assert ids.shape == log_probs.shape == (4, 6, 5)
        for i, prompt in enumerate(batch["encoder_input_tokens"]):
            text = bytes(b - 3 for b in prompt if b > 2).decode()
            row = inputs.index(text)
            length = min(6, len(wanted[row]))
            best = np.take_along_axis(wanted[row][:length], ids[i, :length], axis=-1)
            np.testing.assert_allclose(log_probs[i, :length], best, atol=1e-4)


def test_a_splits_outputs_are_a_data_set_of_local_text(run, task):
    """As a run reads them: SeqKD is SFT on this file."""
    options = {"split": "train", "gin.MAX_EXAMPLES": 4, "gin.FILES": "%MINE"}
    options["gin.MINE"] = {"train": str(run.folder / "t.jsonl")}
    rows = run.rows(None, task=task, temperature=1.0, **options)
    seen = pipeline.tokenized_split(read_task(str(task), ["MAX_EXAMPLES=4"]), "train", texts=True)
    assert [row["input"] for row in rows] == list(seen.columns["inputs"].texts) and len(rows) == 4
    student = read_task(
        "configs/tasks/local_text.gin",
        [
            f"FILES={{'train': {str(run.folder / 'out.jsonl')!r}}}", "INPUT_FIELD='input'",
            "TARGET_FIELD='text'", "VOCABULARY=@vocabularies.byte_level()",
        ],
    )  # fmt: skip
    data = pipeline.tokenized_split(student, "train", texts=True)
    assert data.columns["inputs"].texts == seen.columns["inputs"].texts
    np.testing.assert_array_equal(data.columns["inputs"].tokens, seen.columns["inputs"].tokens)
    # A task makes T5's missing tabs and newlines spaces.
    assert list(data.columns["targets"].texts) == [" ".join(row["text"].split()) for row in rows]


def test_killed_it_continues_to_the_same_bytes_but_not_on_another_split(run, task, monkeypatch):
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 1)
    assert run(None, "whole.jsonl", task=task, **TOP_K) == 0
    whole = (run.folder / "whole.jsonl").read_bytes()
    partial = b"".join(whole.splitlines(keepends=True)[:9])[:-5]
    (run.folder / "out.jsonl.partial").write_bytes(partial)
    settings = (run.folder / "whole.jsonl.settings.json").read_text()
    (run.folder / "out.jsonl.settings.json").write_text(settings)
    assert run(None, task=task, **TOP_K) == 0
    assert (run.folder / "out.jsonl").read_bytes() == whole
    record = json.loads((run.folder / "out.jsonl.settings.json").read_text())
    assert record["launches"][-1]["inputs_done_before"] == 8
    assert run(None, task=task, **TOP_K | {"split": "dev"}) == 1
    run.refused("out.jsonl was begun with split 'train', this is 'dev'")
    assert run(None, task=task, **TOP_K | {"gin.MAX_EXAMPLES": 9}) == 1
    run.refused("out.jsonl was begun with input_bytes")
    assert run(None, task=task, **TOP_K | {"top_k_log_probs": 6}) == 1
    run.refused("top_k_log_probs 5, this is 6")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ["either --input=FILE or --task=FILE.gin"]),
        ({"task": True, "input": "in.txt"}, ["either --input=FILE or --task=FILE.gin"]),
        ({"input": "in.txt", "split": "train"}, ["--split and --gin.NAME belong to --task"]),
        ({"input": "in.txt", "gin.A": 1}, ["--split and --gin.NAME belong to --task"]),
        ({"task": True, "prefix": "do: "}, ["--prefix belongs to --input"]),
        ({"task": True, "delimiter": ";"}, ["--delimiter belongs to --input"]),
        ({"input": "in.tsv", "delimiter": ";;"}, ["DELIMITER=';;' is not one character"]),
        ({"task": True, "target_field": "x", "score": True}, ["--target_field belongs to --input"]),
        ({"task": True, "split": "test"}, ["no split 'test'; the task has train, dev"]),
        ({"task": "no.gin"}, ["--task=no.gin: no such file"]),
        ({"task": "configs/train.gin"}, ["--task=configs/train.gin defines no TASK"]),
        ({"task": True, "gin.MAX_EXAMPLE": 4}, ["MAX_EXAMPLE;", "did you mean MAX_EXAMPLES?"]),
        ({"task": True, "gin": "MAX_EXAMPLES"}, ["write --gin.NAME=VALUE"]),
        ({"task": True, "gin.FILES": {"train": "no.jsonl"}}, ["no.jsonl does not exist"]),
        ({"task": True, "top_k_log_probs": 5}, ["give --score too"]),
        (
            {"task": True, "score": True, "top_k_log_probs": USABLE},
            [f"top_k_log_probs is {USABLE}, but only {USABLE - 1} ids"],  # not pad
        ),
        (
            {"task": True, "score": True, "top_k_log_probs": 2,
             "gin.VOCABULARY": "@vocabularies.arithmetic()"},
            ["the model's ids are not those of task", "259 ids, the other 51"],
        ),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(run, task, options, parts):
    options = options | ({"task": task} if options.get("task") is True else {})
    assert run(options.pop("input", None), **options) == 1
    run.refused(*parts)
    assert not (run.folder / "out.jsonl").exists()


def test_no_ids_to_keep_is_an_error_of_the_command_line(run, task):
    assert run(None, task=task, score=True, top_k_log_probs=0) == 2
    run.refused("top_k_log_probs is 0: use 1")


def test_data_files_of_every_format_are_inputs(tmp_path):
    table = pa.table(
        {"t": [{"en": "a"}, {"en": "b"}], "r": [["x", "y"], ["z"]], "b": [b"\xff"] * 2}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "s-1.csv").write_text('input,n\n"two\nlines",1.50\n')
    (tmp_path / "s-2.csv").write_text("input,n\nlast,2\n")
    nested = open_source(str(tmp_path / "a.parquet"), "t.en", "r", score=True)
    rows = list(nested.rows())
    assert [(nested.prompt_of(r), nested.target_of(r)) for r in rows] == [("a", "x"), ("b", "z")]
    assert nested.others_of(rows[0]) == {"t": {"en": "a"}, "r": ["x", "y"]}  # JSON has no bytes
    several = open_source(str(tmp_path / "s-*.csv"), None, None, score=False)
    assert [several.input_of(row) for row in several.rows(start=1)] == ["last"]
    whole = b"".join((tmp_path / f"s-{i}.csv").read_bytes() for i in (1, 2))
    facts = several.settings()
    assert (several.count, facts["input_bytes"]) == (2, len(whole))
    assert facts["input_sha256"] == hashlib.sha256(whole).hexdigest()
    (tmp_path / "a.tsv").write_text('input;n\n"a";1\n')
    form = TsvFormat(delimiter=";", quoting=False)
    plain = open_source(str(tmp_path / "a.tsv"), None, None, False, form)
    assert [plain.input_of(row) for row in plain.rows()] == ['"a"']
    assert (plain.settings()["delimiter"], plain.settings()["quoting"]) == (";", False)


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("a.csv", "inputs,b\nx,y\n", ("imput", None, False), "no field 'imput': did you mean 'inp"),
        ("a.csv", "q,b\nx,y\n", (None, None, False), "no field input or .* has q, b: choose one"),
        (
            "a.json",
            '[{"input": null}]',
            (None, None, False),
            "a.json: row 1: field 'input' is null",
        ),
        ("a.csv", "input\n", (None, None, False), "has no rows"),
        ("a.xlsx", "", (None, None, False), "a.xlsx is none of .jsonl"),
        ("no.csv", None, (None, None, False), "input .*no.csv does not exist"),
    ],
)
def test_unfit_inputs_are_one_line(tmp_path, name, text, options, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_source(str(tmp_path / name), *options)
    assert "\n" not in str(error.value)
