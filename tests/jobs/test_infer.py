"""The verb `infer`: its numbers against NumPy, its order, its restarts, what it refuses."""

import gzip
import json
import os
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from gkd.checkpoints import save_hf
from gkd.data import pipeline, tasks, vocabularies
from gkd.jobs import command_line, generation, infer, inference_files, models
from gkd.models.t5 import T5, T5Config, as_seq2seq
from gkd.parallel import mesh as meshes

CONFIG = T5Config(
    vocab_size=300, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
    num_decoder_layers=1,
)  # fmt: skip
USABLE = 259  # ByT5's bytes; the table has more rows
TEXTS = (
    "short",
    "a line of more than sixty-four bytes, so that it needs the next but one bucket",
    "ünïcode € 漢字",
    "x" * 98,
    "",
    "tiny",
    "another line that is a lot longer than sixty-four bytes, this time with a comma",
    "the end",
    "and one more",
    "ten",
    "eleven is the last",
)


def bytes_of(text):
    """ByT5's ids, worked out here: byte b is id b + 3, then EOS."""
    return [byte + 3 for byte in text.encode()] + [1]


@pytest.fixture(scope="module")
def model():
    """The parameters of a small random model that sometimes stops by itself."""
    params = nn.meta.unbox(as_seq2seq(CONFIG).init(jax.random.key(3)))
    kernel = 3 * params["decoder"]["logits_dense"]["kernel"]
    kernel = kernel.at[:, 1].multiply(3)  # EOS is now often the most probable, often the least
    params["decoder"]["logits_dense"]["kernel"] = kernel
    return params


@pytest.fixture(scope="module")
def model_dir(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "hf"
    save_hf(folder, CONFIG, model)
    return folder


@pytest.fixture
def run(model_dir, tmp_path, capfd):
    """Runs `gkd infer` in a folder of its own; returns exit code and stderr."""

    class Run:
        folder = tmp_path

        def write(self, name, rows):
            """An input file; rows are texts, or dictionaries for JSONL."""
            path = tmp_path / name
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            path.write_text("".join(f"{line}\n" for line in lines))
            return path

        def __call__(self, input, output="out.jsonl", **options):
            options = {"vocabulary": "bytes", "max_length": 6, "batch_size": 8} | options
            options |= {"model": options.get("model", model_dir), "input": input}
            options["output"] = tmp_path / output
            arguments = [
                f"--{name}" if value is True else f"--{name}={value}"
                for name, value in options.items()
            ]
            capfd.readouterr()
            code = command_line.main(["infer", *arguments])
            self.stdout, self.stderr = capfd.readouterr()
            return code

        def rows(self, input, output="out.jsonl", **options):
            """Runs it, and reads what it wrote."""
            assert self(input, output, **options) == 0, self.stderr
            return read(tmp_path / output)

        def refused(self, *parts, code=1):
            """The last run ended in one line that holds the parts."""
            line = self.stderr.splitlines()[-1]
            assert "Traceback" not in self.stderr and line.startswith("gkd: error: "), self.stderr
            for part in parts:
                assert part in line

    return Run()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_softmax(logits):
    """In float64 NumPy."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@jax.jit
def apply(params, inputs, decoder_inputs):
    return T5(CONFIG).apply({"params": params}, inputs, decoder_inputs)


def raw_logits(params, text, tokens):
    """Teacher-forced logits [T, V] of one example, from the plain Linen module."""
    inputs, decoder = np.zeros((1, 256), np.int32), np.zeros((1, 10), np.int32)
    inputs[0, : len(bytes_of(text))] = bytes_of(text)
    decoder[0, 1 : len(tokens)] = tokens[:-1]
    return np.array(apply(params, inputs, decoder)[0, : len(tokens)])


def usable_log_probs(params, text, tokens):
    """log Q [T, V] over the usable ids: neither pad nor a row without a byte."""
    logits = raw_logits(params, text, tokens)
    logits[:, 0] = logits[:, USABLE:] = -1e30
    return log_softmax(logits)


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
    for part in ("11 inputs;", " 0 inputs cut", f"{share:.1f}% of them", f" {tokens} tokens"):
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
    assert f" {cut} targets cut" in run.stdout and "targets from 'target'" in run.stdout


def test_a_prefix_is_read_and_a_long_input_is_cut_before_its_eos(run, model):
    rows = run.rows(run.write("in.txt", ["abcdefgh", "ab"]), prefix="do: ", input_length=9)
    for row, seen in zip(rows, ["do: abcd", "do: ab"], strict=True):
        wanted = usable_log_probs(model, seen, row["tokens"]).argmax(-1)
        assert row["tokens"] == wanted.tolist()
    assert [row["input"] for row in rows] == ["abcdefgh", "ab"]
    assert " 1 inputs cut" in run.stdout


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
    short, default, long = (
        run.rows(path, f"{number}.jsonl", beams=4, **options)
        for number, options in enumerate([{"length_penalty": 0}, {}, {"length_penalty": 5}])
    )
    lengths = [sum(len(row["tokens"]) for row in rows) for rows in (short, default, long)]
    assert lengths[0] <= lengths[1] < lengths[2]
    settings = json.loads((run.folder / "1.jsonl.settings.json").read_text())["settings"]
    assert settings["length_penalty"] == 0.6  # T5's


def test_where_fewer_outputs_exist_than_beams_the_rest_is_empty(run):
    """258 usable ids make 258 outputs of one token."""
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
    loaded = models.load_checkpoint(models.open_model("MODEL", str(folder)), mesh, rules, "float32")
    masks = golden["attention_mask"] > 0
    inputs = [row[mask].tolist() for row, mask in zip(golden["input_ids"], masks, strict=True)]
    writer = generation.Generator(
        loaded, mesh, rules, np.arange(384) > 0, generation.Decoding(max_length=20), (12, 24), 8
    )
    written = dict(pair for batch in writer.outputs(inputs) for pair in batch)
    for i, wanted in enumerate(golden["greedy_sequences"][:, 1:]):
        assert written[i].tokens == [[int(token) for token in wanted if token]]


# Noise, batches and programs


def test_neither_batches_nor_buckets_nor_devices_change_a_sample(run, monkeypatch):
    options = {"temperature": 1.0, "samples": 2, "seed": 5, "top_k": 100, "top_p": 0.95}
    path = run.write("in.txt", TEXTS)
    reference = run.rows(path, "a.jsonl", **options)
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 1)
    others = [
        run.rows(path, "b.jsonl", batch_size=16, input_length=99, **options),
        run.rows(path, "c.jsonl", batch_size=3, model_parallelism=8, **options),
    ]
    for rows in others:
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


def test_a_program_for_each_length_and_no_more(model):
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    boxed = jax.eval_shape(as_seq2seq(CONFIG).init, jax.random.key(0))
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    loaded = models.LoadedModel(CONFIG, as_seq2seq(CONFIG), shardings, model, None)
    buckets = generation.length_buckets(128)
    assert buckets == (32, 64, 128)
    writer = generation.Generator(
        loaded, mesh, rules, np.arange(300) > 0, generation.Decoding(max_length=2), buckets, 8
    )
    random = np.random.default_rng(0)
    for _ in range(3):
        inputs = [[5] * n for n in random.integers(1, 129, 30)]
        positions = [position for batch in writer.outputs(inputs) for position, _ in batch]
        assert sorted(positions) == list(range(30))
    assert writer._compiled._cache_size() == writer.programs == 3


def test_a_plan_has_as_few_batches_as_possible_of_like_length():
    assert generation.length_buckets(32) == (32,)
    assert generation.length_buckets(20) == (20,)
    assert generation.length_buckets(1000) == (32, 64, 128, 256, 512, 1000)
    planned = generation.plan([3, 40, 32, 64, 65, 1], (32, 64, 70), 2)
    assert planned == [(70, [4, 1]), (64, [3, 0]), (32, [2, 5])]
    assert generation.plan([33, 5, 5], (32, 64), 2) == [(64, [0, 1]), (32, [2])]


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
    assert list(data.inputs) == [text for text in TEXTS[:3] for _ in range(2)]
    # T5 has no tabs or newlines, so a task makes them spaces.
    assert list(data.targets) == [" ".join(row["text"].split()) for row in rows]
    assert data.input_tokens[: data.input_offsets[1]].tolist() == bytes_of(TEXTS[0])


def test_a_step_is_not_ignored_where_there_are_none(run):
    assert run(run.write("in.txt", ["a"]), step=7) == 1
    run.refused("step 7", "huggingface checkpoint", "only a run has steps")


# Restarts


@pytest.fixture
def small_windows(monkeypatch):
    """A window is one batch of eight inputs."""
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 1)


SAMPLED = {"temperature": 1.0, "samples": 2, "max_length": 3}


def test_killed_anywhere_it_continues_to_the_same_bytes(run, small_windows):
    path = run.write("in.txt", TEXTS * 2)
    assert run(path, "whole.jsonl", **SAMPLED) == 0
    whole = (run.folder / "whole.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    settings = (run.folder / "whole.jsonl.settings.json").read_text()
    # In a line of the first window; at a window's end; in the third window; before the rename.
    for kept, done in [(ends[2] + 9, 0), (ends[15], 8), (ends[40], 16), (len(whole), 22)]:
        (run.folder / "out.jsonl").unlink(missing_ok=True)
        (run.folder / "out.jsonl.partial").write_bytes(whole[:kept])
        (run.folder / "out.jsonl.settings.json").write_text(settings)
        assert run(path, **SAMPLED) == 0
        assert (run.folder / "out.jsonl").read_bytes() == whole
        assert not (run.folder / "out.jsonl.partial").exists()
        record = json.loads((run.folder / "out.jsonl.settings.json").read_text())
        assert [launch["inputs_done_before"] for launch in record["launches"]] == [0, done]
        assert f" {2 * (22 - done)} samples" in run.stdout


def test_a_signal_drops_the_window_in_flight_and_the_same_command_continues(
    run, small_windows, monkeypatch
):
    path = run.write("in.txt", TEXTS * 2)
    assert run(path, "whole.jsonl", **SAMPLED) == 0
    whole = (run.folder / "whole.jsonl").read_bytes()
    finish, calls = generation.Generator._finish, []

    def finish_and_signal(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return finish(self, *arguments)

    monkeypatch.setattr(generation.Generator, "_finish", finish_and_signal)
    assert run(path, **SAMPLED) == 75
    assert "SIGTERM: 16 of 22 inputs are complete" in run.stderr
    assert not (run.folder / "out.jsonl").exists()
    assert whole.startswith((run.folder / "out.jsonl.partial").read_bytes())
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 2)
    assert run(path, **SAMPLED) == 1
    run.refused("window 8, this is 16")
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 1)
    assert run(path, **SAMPLED) == 0
    assert (run.folder / "out.jsonl").read_bytes() == whole

    calls.clear()
    monkeypatch.setattr(infer, "BATCHES_PER_WINDOW", 3)  # the signal comes inside the only window
    assert run(path, "other.jsonl", **SAMPLED) == 75
    assert "SIGTERM: 0 of 22 inputs are complete" in run.stderr


def test_a_complete_output_is_left_alone(run, monkeypatch):
    path = run.write("in.txt", TEXTS[:2])
    assert run(path, max_length=2) == 0
    before = {p: p.read_bytes() for p in run.folder.iterdir()}
    monkeypatch.setattr(models, "load_checkpoint", None)  # not even loaded
    assert run(path, max_length=2) == 0
    assert "is complete" in run.stdout
    assert {p: p.read_bytes() for p in run.folder.iterdir()} == before
    record = json.loads((run.folder / "out.jsonl.settings.json").read_text())
    assert record["settings"]["input_bytes"] == path.stat().st_size
    assert record["launches"][0]["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"max_length": 3}, ["max_length 2, this is 3"]),
        ({"temperature": 0.5, "seed": 1}, ["temperature 0.0, this is 0.5"]),
        ({"prefix": "x"}, ["prefix '', this is 'x'"]),
        ({"batch_size": 16}, ["batch_size 8, this is 16"]),
        ({"dtype": "bfloat16"}, ["dtype 'float32', this is 'bfloat16'"]),
        ({"beams": 2}, ["beams 0, this is 2"]),
    ],
)
def test_other_settings_do_not_continue(run, options, parts):
    path = run.write("in.txt", ["a"])
    text = json.dumps({"settings": settings_of(run, path), "launches": []})
    (run.folder / "out.jsonl.settings.json").write_text(text)
    assert run(path, **({"max_length": 2} | options)) == 1
    run.refused(*parts, "another --output")


def settings_of(run, path):
    assert run(path, "first.jsonl", max_length=2) == 0
    return json.loads((run.folder / "first.jsonl.settings.json").read_text())["settings"]


def test_another_input_does_not_continue(run):
    path = run.write("in.txt", ["a"])
    assert run(path, max_length=2) == 0
    run.write("in.txt", ["b"])
    assert run(path, max_length=2) == 1
    run.refused("out.jsonl was begun with input_sha256")


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.partial"])
def test_a_file_of_somebody_else_is_not_overwritten(run, name):
    (run.folder / name).write_text("precious\n")
    assert run(run.write("in.txt", ["a"])) == 1
    run.refused(name, "another --output")
    assert (run.folder / name).read_text() == "precious\n"


def test_damaged_settings(run):
    (run.folder / "out.jsonl.settings.json").write_text('{"settings": {')
    assert run(run.write("in.txt", ["a"])) == 1
    run.refused("out.jsonl.settings.json is damaged")


def test_a_full_disk_is_one_line_and_the_rest_is_kept(run, small_windows, monkeypatch):
    path = run.write("in.txt", TEXTS)
    sync, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) == 2:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 9)  # what did not fit
            raise OSError(28, "No space left on device")
        return sync(descriptor)

    monkeypatch.setattr(inference_files.os, "fsync", full)
    assert run(path, **SAMPLED) == 1
    run.refused("cannot write", "out.jsonl.partial", "No space left on device", "continues")
    assert run(path, **SAMPLED) == 0
    assert " (8 by earlier launches)" in run.stdout
    assert len(read(run.folder / "out.jsonl")) == 2 * len(TEXTS)


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("in.txt", None, {}, ["in.txt does not exist"]),
        ("in.csv", b"a\n", {}, ["in.csv is neither .txt, .tsv nor .jsonl"]),
        ("in.txt", b"", {}, ["in.txt has no rows"]),
        ("in.tsv", b"input\n", {}, ["in.tsv has no rows"]),
        ("in.txt", b"fine\n\xff\n", {}, ["in.txt:2", "not UTF-8"]),
        ("in.txt", b"a\n", {"input_field": "x"}, ["in.txt is plain text, without fields"]),
        ("in.txt", b"a\n", {"score": True}, ["in.txt is plain text, without fields"]),
        ("in.jsonl", b'{"input": "a"}\n{"input"\n', {}, ["in.jsonl:2", "malformed JSON"]),
        ("in.jsonl", b'{"input": "a"}\n[1]\n', {}, ["in.jsonl:2", "needs an object"]),
        ("in.jsonl", b'{"input": "a"}\n{"in": 1}\n', {}, ["in.jsonl:2", "no field 'input'"]),
        ("in.jsonl", b'{"input": "a"}\n{"input": 1}\n', {}, ["in.jsonl:2", "is int, needs text"]),
        ("in.jsonl", b'{"input": "\\ud800"}\n', {}, ["in.jsonl:1", "no valid text"]),
        ("in.jsonl", b'{"q": "a", "r": 1}\n', {}, ["no field input or", "q, r", "--input_field"]),
        ("in.jsonl", b'{"q": "a"}\n', {"input_field": "p"}, ["in.jsonl:1: no field 'p'"]),
        ("in.jsonl", b'{"input": "a"}\n', {"score": True}, ["no field target", "--target_field"]),
        (
            "in.jsonl",
            b'{"input": "a", "target": "b"}\n{"input": "a", "target": null}\n',
            {"score": True},
            ["in.jsonl:2: field 'target' is NoneType"],
        ),
        ("in.jsonl", b'{"input": "a", "t": ""}\n', {"target_field": "t"}, ["only with --score"]),
        ("in.tsv", b"input\tb\na\n", {}, ["in.tsv:2: 1 columns, needs 2"]),
        ("in.txt", b"a\n", {"output": "no/such/out.jsonl"}, ["no/such is no folder"]),
        ("in.txt", b"a\n", {"output": "out.txt"}, ["out.txt holds JSON lines"]),
        ("in.txt", b"a\n", {"samples": 3, "beams": 2}, ["samples is 3 and beams 2"]),
        ("in.txt", b"a\n", {"samples": 2}, ["2 greedy samples are all the same"]),
        ("in.txt", b"a\n", {"samples": 0}, ["samples is 0"]),
        ("in.txt", b"a\n", {"beams": 2, "temperature": 1}, ["beams search, temperature"]),
        ("in.txt", b"a\n", {"top_k": 2}, ["set temperature above 0"]),
        ("in.txt", b"a\n", {"length_penalty": 1}, ["set beams too"]),
        ("in.txt", b"a\n", {"beams": 2, "length_penalty": -1}, ["length_penalty is -1"]),
        ("in.txt", b"a\n", {"temperature": -1}, ["temperature is -1"]),
        ("in.txt", b"a\n", {"temperature": 1, "top_p": 0}, ["top_p is 0"]),
        ("in.txt", b"a\n", {"max_length": 0}, ["max_length is 0"]),
        ("in.txt", b"a\n", {"input_length": 0}, ["input_length is 0"]),
        ("in.txt", b"a\n", {"batch_size": 12}, ["batch_size 12 does not divide over 8 devices"]),
        ("in.txt", b"a\n", {"model": "/no/such/model"}, ["/no/such/model"]),
        ("in.txt", b"a\n", {"vocabulary": "/no/spiece.model"}, ["/no/spiece.model"]),
    ],
)
def test_bad_input(run, name, content, options, parts):
    if content is not None:
        (run.folder / name).write_bytes(content)
    assert run(run.folder / name, **options) == 1
    run.refused(*parts)
    assert not (run.folder / "out.jsonl").exists()


def test_a_model_whose_numbers_overflow(run, model, tmp_path):
    norm = {"scale": model["decoder"]["decoder_norm"]["scale"] * 3e38}
    broken = {**model, "decoder": {**model["decoder"], "decoder_norm": norm}}
    save_hf(tmp_path / "broken", CONFIG, broken)
    assert run(run.write("in.txt", ["a"]), model=tmp_path / "broken") == 1
    run.refused("input 0 gives NaN log-probabilities")


def test_help_is_quick():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gkd", "infer", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for word in ("--temperature", "--beams", "(default: 128)"):
        assert word in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "tensorflow", "seqio", "numpy"}
