"""The verb `infer`: its numbers against NumPy, its order."""

import gzip
import json

import numpy as np
import pytest

from gkd.data import pipeline, tasks
from gkd.infer import generator, infer
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.vocabularies import vocabularies
from tests.infer.inference import (
    TEXTS,
    bytes_of,
    log_softmax,
    raw_logits,
    usable_log_probs,
)

# The numbers


def test_greedy_outputs_are_the_most_probable_tokens_in_the_inputs_order(run, model):
    rows = run.rows(run.write("in.txt", TEXTS), max_length=8)
    assert [(row["index"], row["sample"], row["input"]) for row in rows] == [
        (i, 0, text) for i, text in enumerate(TEXTS)
    ]
    for row in rows:
        tokens = row["tokens"]
        log_probs = usable_log_probs(model, row["input"], tokens)
        assert tokens == log_probs.argmax(-1).tolist()
        chosen = log_probs[np.arange(len(tokens)), tokens]
        assert row["log_prob"] == pytest.approx(chosen.sum(), abs=2e-4)
        assert row["stop"] == ("eos" if tokens[-1] == 1 else "length")
        assert tokens[-1] == 1 or len(tokens) == 8
        assert 1 not in tokens[:-1]
        written = bytes(i - 3 for i in tokens if i > 2)
        assert row["text"] == written.decode(errors="ignore")
    assert {row["stop"] for row in rows} == {"eos", "length"}
    stopped = sum(row["stop"] == "eos" for row in rows)
    share = 100 * stopped / len(TEXTS)
    tokens = sum(len(row["tokens"]) for row in rows)
    for part in ("11 inputs;", " 0 inputs truncated", f"{share:.1f}% of them", f" {tokens} tokens"):
        assert part in run.stdout


def test_target_log_probs_are_those_of_the_raw_logits(run, model):
    pairs = [{"input": text, "target": text[:4] + "é"} for text in TEXTS]
    pairs[0]["target"] = "longer than max_length"
    rows = run.rows(run.write("in.jsonl", pairs), score=True, max_length=7)
    for row, pair in zip(rows, pairs, strict=True):
        tokens = bytes_of(pair["target"])[:7]
        log_probs = log_softmax(raw_logits(model, row["input"], tokens))  # of all 300 ids
        wanted = log_probs[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(row["target_log_probs"], wanted, atol=1e-4)
        assert row["target"] == pair["target"]
    cut = sum(len(bytes_of(pair["target"])) > 7 for pair in pairs)
    assert f" {cut} targets truncated" in run.stdout and "targets from 'target'" in run.stdout


def test_a_prefix_is_read_and_a_long_input_is_cut_before_its_eos(run, model):
    rows = run.rows(run.write("in.txt", ["abcdefgh", "ab"]), prefix="do: ", input_length=9)
    for row, seen in zip(rows, ["do: abcd", "do: ab"], strict=True):
        wanted = usable_log_probs(model, seen, row["tokens"]).argmax(-1)
        assert row["tokens"] == wanted.tolist()
    assert [row["input"] for row in rows] == ["abcdefgh", "ab"]
    assert " 1 inputs truncated" in run.stdout


def test_beams_are_scored_like_teacher_forced_tokens_and_beat_greedy(run, model):
    path = run.write("in.txt", TEXTS[:3])
    greedy = run.rows(path, "greedy.jsonl")
    found = run.rows(path, "beams.jsonl", beams=4, samples=3, length_penalty=0)
    assert [(row["index"], row["sample"]) for row in found] == [
        (i, k) for i in range(3) for k in range(3)
    ]
    for i in range(3):
        rows = found[3 * i : 3 * i + 3]
        assert len({tuple(row["tokens"]) for row in rows}) == 3
        for row in rows:
            log_probs = usable_log_probs(model, TEXTS[i], row["tokens"])
            total = log_probs[np.arange(len(row["tokens"])), row["tokens"]].sum()
            assert row["log_prob"] == pytest.approx(total, abs=2e-4)
        of_one_kind = [row["log_prob"] for row in rows if row["stop"] == rows[0]["stop"]]
        assert of_one_kind == sorted(of_one_kind, reverse=True)
        assert max(row["log_prob"] for row in rows) >= greedy[i]["log_prob"] - 1e-4
    assert found[0]["tokens"] != found[1]["tokens"]


def test_the_length_penalty_reaches_the_search(run):
    path = run.write("in.txt", [text for text in TEXTS if len(text) < 24])
    default, long = (
        run.rows(path, f"{number}.jsonl", beams=4, **options)
        for number, options in enumerate([{}, {"length_penalty": 5}])
    )
    lengths = [sum(len(row["tokens"]) for row in rows) for rows in (default, long)]
    assert lengths[0] < lengths[1]
    settings = json.loads((run.folder / "0.jsonl.settings.json").read_text())["settings"]
    assert settings["length_penalty"] == 0.6  # T5's


def test_where_fewer_outputs_exist_than_beams_the_rest_is_empty(run):
    """258 valid ids make 258 completions of one token."""
    rows = run.rows(run.write("in.txt", ["a"]), beams=262, samples=260, max_length=1)
    assert len({tuple(row["tokens"]) for row in rows[:258]}) == 258
    for row in rows[258:]:
        assert (row["tokens"], row["text"], row["log_prob"]) == ([], "", None)
        assert row["stop"] == "none"
    assert "260 samples" in run.stdout


def test_greedy_equals_the_golden_continuation(shared):
    """transformers' own tokens, through the compiled program, bucket by bucket."""
    folder = shared / "golden" / "hf" / "t5v11_tiny"
    golden = np.load(folder / "golden.npz")
    mesh = meshes.make_mesh()
    rules = meshes.rules_for()
    loaded = model_loading.load_checkpoint(
        model_loading.open_model("MODEL", str(folder)), mesh, rules, "float32"
    )
    masks = golden["attention_mask"] > 0
    inputs = [row[mask].tolist() for row, mask in zip(golden["input_ids"], masks, strict=True)]
    writer = generator.Generator(
        loaded, mesh, np.arange(384) > 0, generator.Decoding(max_length=20), (12, 24), 8
    )
    written = dict(pair for batch in writer.outputs(inputs) for pair in batch)
    for i, wanted in enumerate(golden["greedy_sequences"][:, 1:]):
        assert written[i].tokens == [[int(token) for token in wanted if token]]


# Noise, batches and programs


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 3, "input_length": 99, "model_parallelism": 8},
        pytest.param({"batch_size": 16, "input_length": 99}, marks=pytest.mark.slow),
        pytest.param({"batch_size": 3, "model_parallelism": 8}, marks=pytest.mark.slow),
    ],
)
def test_neither_batches_nor_buckets_nor_devices_change_a_sample(run, monkeypatch, changes):
    options = {"temperature": 1.0, "samples": 2, "seed": 5, "top_k": 100, "top_p": 0.95}
    path = run.write("in.txt", TEXTS)
    reference = run.rows(path, "a.jsonl", **options)
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 1)
    rows = run.rows(path, "b.jsonl", **changes, **options)
    for row, wanted in zip(rows, reference, strict=True):
        assert row.pop("log_prob") == pytest.approx(wanted["log_prob"], abs=1e-3)
        assert row == {name: wanted[name] for name in row}
    assert [(row["index"], row["sample"]) for row in reference[:4]] == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip


def test_samples_differ_by_number_seed_and_input_and_come_again(run):
    path = run.write("in.txt", ["same", "same"])
    options = {"temperature": 1.0, "samples": 3}
    rows = run.rows(path, "a.jsonl", seed=1, **options)
    assert len({tuple(row["tokens"]) for row in rows}) >= 5
    again = run.rows(path, "b.jsonl", seed=1, **options)
    other = run.rows(path, "c.jsonl", seed=2, **options)
    assert again == rows
    assert sum(a["tokens"] != b["tokens"] for a, b in zip(other, rows, strict=True)) >= 4


# What it reads and writes


def test_all_formats_give_the_same_outputs_and_keep_the_other_fields(run):
    texts = ["one", "two words", "", "a\\b"]
    text = run.rows(run.write("in.txt", texts), "a.jsonl")
    table = run.write("in.tsv", ["id\tprompt\tnote", *(f"{t[:1]}\t{t}\tn" for t in texts)])
    rows = run.rows(table, "b.jsonl")
    assert "field 'prompt'" in run.stdout
    assert [row.pop("id") for row in rows] == [t[:1] for t in texts]
    assert [row.pop("note") for row in rows] == ["n"] * 4
    assert rows == text
    objects = [
        {"other": {"nested": [1, None]}, "q": t, "text": "lost", "index": 9, "x": "\ud800"}
        for t in texts
    ]
    rows = run.rows(run.write("in.jsonl", objects), "c.jsonl", input_field="q")
    assert [row.pop("other") for row in rows] == [{"nested": [1, None]}] * 4
    assert [row.pop("x") for row in rows] == ["\ud800"] * 4
    assert rows == text
    with gzip.open(run.folder / "in.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": t, "input": "not this"}) + "\n" for t in texts)
    rows = run.rows(run.folder / "in.jsonl.gz", "d.jsonl", input_field="text")
    assert rows == text


def test_no_row_of_a_table_is_lost_or_changed(run):
    cells = [r"C:\temp $\theta$", "", '"say ""hi"""', '5" pipe']
    lines = ["\ufeffid\tinput", *("\t".join((cell and "x", cell)) for cell in cells)]
    rows = run.rows(run.write("in.tsv", lines), max_length=1)
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["input"] for row in rows] == [cells[0], "", 'say "hi"', cells[3]]
    (first, _) = run.rows(run.write("in.txt", ["\ufeffa", "b"]), "b.jsonl", max_length=1)
    assert first["input"] == "a"


def test_the_default_field_is_the_first_that_exists(run):
    rows = [{"prompt": "wrong", "text": "wrong", "inputs": "right"}]
    (row,) = run.rows(run.write("in.jsonl", rows), max_length=1)
    assert row["input"] == "right"
    assert "1 inputs from field 'inputs'" in run.stdout


def test_the_output_is_a_data_set_for_a_student(run):
    rows = run.rows(run.write("in.txt", TEXTS[:3]), temperature=1.0, samples=2)
    task = tasks.local_text(
        {"train": str(run.folder / "out.jsonl")},
        vocabulary=vocabularies.byte_level(), input_field="input", target_field="text",
    )  # fmt: skip
    data = pipeline.tokenized_split(task, "train", texts=True)
    assert list(data.columns["inputs"].texts) == [text for text in TEXTS[:3] for _ in range(2)]
    assert list(data.columns["targets"].texts) == [
        row["text"] for row in rows
    ]  # bytes have tabs and newlines
    assert data.columns["inputs"].tokens[: data.columns["inputs"].offsets[1]].tolist() == bytes_of(
        TEXTS[0]
    )


def test_a_step_is_not_ignored_where_there_are_none(run):
    assert run(run.write("in.txt", ["a"]), step=7) == 1
    run.refused("step 7", "huggingface checkpoint", "only a run has steps")


# Restarts
