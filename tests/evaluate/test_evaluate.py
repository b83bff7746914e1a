"""The verb `evaluate`: every way of decoding, what it writes, and what it refuses."""

import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from gkd.cli import command_line
from gkd.configuration.experiment import Evaluation
from gkd.evaluate import report
from gkd.evaluate.evaluate import _output, decodings
from gkd.infer import generator
from gkd.infer.decode_options import Decoding
from gkd.infer.generator import Output
from gkd.metrics import metrics
from gkd.models.interface import project
from gkd.models.t5 import as_seq2seq
from tests.infer.inference import CONFIG, USABLE, bytes_of, read

GIN = """
from __gin__ import dynamic_registration
include 'configs/train.gin'
from gkd.data import tasks
from gkd.vocabularies import vocabularies
TASK = @tasks.instructions()
tasks.instructions.templates = [('{input}', '{target}')]
tasks.instructions.files = %FILES
tasks.instructions.vocabulary = @vocabularies.byte_level()
BEST_METRIC = 'exact_match'
"""
ROWS = (("one", "cat"), ("two", "dog"))


@pytest.fixture
def evaluate(tmp_path, model_dir, capfd):
    """Runs the verb on ROWS; returns (exit code, stdout and stderr)."""
    lines = [json.dumps({"input": text, "target": target}) for text, target in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "run.gin").write_text(GIN)
    settings = {
        "MODEL_DIR": str(model_dir), "FILES": {"validation": str(tmp_path / "rows.jsonl")},
        "INPUT_LENGTH": 16, "TARGET_LENGTH": 5, "BATCH_SIZE": 8,
        "evaluate.evaluate.output": str(tmp_path / "e.json"),
    }  # fmt: skip

    def run(**more):
        capfd.readouterr()
        bindings = [f"--gin.{name}={value!r}" for name, value in (settings | more).items()]
        code = command_line.main(["evaluate", f"--gin_file={tmp_path}/run.gin", *bindings])
        return code, "".join(capfd.readouterr())

    run.folder = tmp_path
    return run


def output(*texts, end=True):
    tokens = [bytes_of(text) if end else bytes_of(text)[:-1] for text in texts]
    return Output(tokens, [-1.0 * len(text) for text in texts], None)


def test_results_by_decoding_are_the_hand_computed_ones(evaluate, monkeypatch):
    """Outputs are given, so that every number can be worked out on paper."""
    written = {
        0.0: [output("cat"), output("dog ate", end=False)],
        0.5: [output("cat", "a cat", "a cat"), output("dog", "dog", "dog")],
        2.0: [output("x", "y", "z"), output("x", "x", "dog")],
        "beam": [output("dog"), output("dog")],
    }
    asked = []

    def outputs(self, inputs, first_number=0, targets=None, params=None):
        decoding = self.decoding
        asked.append((decoding, self._score))
        rows = written["beam" if decoding.beams else decoding.temperature]
        scores = [[-1.0, -2.0, -3.0, -4.0], [-5.0] * 4] if self._score else [None, None]
        for i in (1, 0):
            yield [(i, Output(rows[i].tokens, rows[i].log_probs, scores[i]))]

    monkeypatch.setattr(generator.Generator, "outputs", outputs)
    code, out = evaluate(
        EVALUATION_TEMPERATURES=(0.5, 2.0), EVALUATION_SAMPLES=3, EVALUATION_BEAMS=4, SEED=7
    )
    assert code == 0, out
    sampled = {"samples": 3, "seed": 7}
    assert asked == [
        (Decoding(5), True),
        (Decoding(5, temperature=0.5, **sampled), False),
        (Decoding(5, temperature=2.0, **sampled), False),
        (Decoding(5, beams=4, length_penalty=None), False),
    ]
    result = json.loads((evaluate.folder / "e.json").read_text())
    student = result["metrics"]["student"]
    assert student["greedy"] == {"exact_match": 50, "output_length": 5.5, "unfinished": 50}
    half, two = student["temperature_0.5"], student["temperature_2.0"]
    # Of the three columns of samples 2, 1 and 1 of 2 are right; then 0, 0 and 1.
    assert half["exact_match"] == pytest.approx(100 * (2 + 1 + 1) / 6)
    assert two["exact_match"] == pytest.approx(100 / 6)
    assert (half["maj@3"], two["maj@3"]) == (50, 0)  # the votes are (a cat, dog) and (x, x)
    assert half["distinct_1"] == pytest.approx(100 * (2 / 5 + 1 / 3) / 2)
    assert two["distinct_1"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert two["self_bleu"] < half["self_bleu"] < 100
    assert half["output_length"] == pytest.approx((4 + 6 + 6 + 4 + 4 + 4) / 6)
    assert half["unfinished"] == 0
    assert student["beam_4"]["exact_match"] == 50
    assert student["references"]["reference_log_prob"] == -30 / 8
    assert result["decoding"]["beam_4"]["length_penalty"] == 0.6
    lines = read(evaluate.folder / "e.jsonl")
    assert [line["reference"] for line in lines] == ["cat", "dog"]
    shown = [sample["text"] for sample in lines[0]["student"]["temperature_0.5"]]
    assert shown == ["cat", "a cat", "a cat"]
    assert lines[1]["student"]["greedy"] == [
        {"text": "dog ate", "tokens": bytes_of("dog ate")[:-1], "log_prob": -7.0}
    ]
    assert lines[0]["student"]["reference_log_probs"] == [-1, -2, -3, -4]
    assert "student temperature_0.5: exact_match 66.67" in out
    cited = {"step_folder", "parameters", "model", "vocabulary"}
    assert cited <= set(result["student"])
    assert result["student"]["vocabulary"]["bytes"]
    assert {"git_commit", "versions", "signatures", "python"} <= set(result)
    assert result["bindings"]["EVALUATION_SAMPLES"] == "3" and result["seed"] == 7
    assert result["devices"].startswith("8 ") and result["mesh"] == {"data": 8, "model": 1}


def _log_probs(params, pairs):
    """log P of every token of (prompt, tokens) pairs by teacher forcing, in float64: over all ids
    of the table, and over the usable ones.
    """
    prompts, outputs = np.zeros((len(pairs), 4), np.int32), np.zeros((len(pairs), 5), np.int32)
    for i, (text, tokens) in enumerate(pairs):
        prompts[i], outputs[i, : len(tokens)] = bytes_of(text), tokens
    seq2seq = as_seq2seq(CONFIG)

    @jax.jit
    def logits_of(params, prompts, shifted):
        hidden = seq2seq.decode_hidden(params, seq2seq.encode(params, prompts), shifted)
        return project(hidden.last, seq2seq.head(params))

    logits = np.float64(logits_of(params, prompts, np.pad(outputs, ((0, 0), (1, 0)))[:, :-1]))
    chosen = np.take_along_axis(logits, outputs[..., None], axis=-1)[..., 0]
    for ids in (slice(None), slice(1, USABLE)):
        log_probs = chosen - np.log(np.exp(logits[..., ids]).sum(axis=-1))
        yield [row[: len(tokens)] for row, (_, tokens) in zip(log_probs, pairs, strict=True)]


def test_the_programs_write_as_they_are_told(evaluate, model):
    code, out = evaluate(EVALUATION_TEMPERATURES=(1.0,), EVALUATION_SAMPLES=4)
    assert code == 0, out
    rows = [line["student"] for line in read(evaluate.folder / "e.jsonl")]
    pairs = [(text, bytes_of(target)) for text, target in ROWS]
    scores = [row["reference_log_probs"] for row in rows]
    for name in ("greedy", "temperature_1.0"):
        for (text, _), row in zip(ROWS, rows, strict=True):
            pairs += [(text, sample["tokens"]) for sample in row[name]]
            scores += [[sample["log_prob"]] for sample in row[name]]
    raw, usable = _log_probs(model, pairs)
    for got, wanted in zip(scores[:2], raw[:2], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    for got, wanted in zip(scores[2:], usable[2:], strict=True):
        assert got == [pytest.approx(wanted.sum(), abs=1e-3)]
    result = json.loads((evaluate.folder / "e.json").read_text())
    mean = np.concatenate(raw[:2]).mean()
    references = result["metrics"]["student"]["references"]
    assert references["reference_log_prob"] == pytest.approx(mean, abs=1e-4)
    warm = [[tuple(sample["tokens"]) for sample in row["temperature_1.0"]] for row in rows]
    assert all(len(set(row)) > 1 for row in warm) and warm[0] != warm[1]


REFUSED = {
    "samples is 0": {"samples": 0, "temperatures": (1.0,)},
    "set EVALUATION_TEMPERATURES": {"samples": 2},
    "temperatures[0] is -0.5: use more than 0": {"temperatures": (-0.5,)},
    "temperatures is 0.0: use more than 0": {"temperatures": 0.0},
    "are (0.7, 0.7): use different": {"temperatures": (0.7, 0.7)},
    "temperatures[0] is 'a'": {"temperatures": ["a"]},
    "beams is -1": {"beams": -1},
    "length_penalty is -1": {"beams": 2, "length_penalty": -1.0},
    "length_penalty belongs to a beam search": {"length_penalty": 0.6},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_mean_nothing_are_refused(message):
    task = types.SimpleNamespace(choices=None)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        decodings.__wrapped__(task, 8, Evaluation(**REFUSED[message]), seed=0)
    assert "\n" not in str(error.value)


def test_a_task_of_options_refuses_to_sample():
    task = types.SimpleNamespace(choices=len, name="quiz")
    assert decodings.__wrapped__(task, 8, Evaluation(), 0) == {"options": None}
    with pytest.raises(ValueError, match="task quiz scores its options"):
        decodings.__wrapped__(task, 8, Evaluation(temperatures=(0.7,)), 0)


def test_the_command_line_says_it_in_one_line(evaluate):
    code, out = evaluate(EVALUATION_SAMPLES=2)
    assert code == 1 and out.count("\n") == 1
    assert out.startswith("gkd: error: EVALUATION_SAMPLES is 2 but nothing is sampled")


def test_the_signatures_say_what_the_metrics_do():
    said = report.signatures()
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in said["bleu"]
    assert "nrefs:k-1" in said["self_bleu"] and "eff:yes" in said["self_bleu"]
    assert "Porter stemming" in said["rouge"] and "F1" in said["rouge"]
    assert metrics.rouge(["she runs"], ["she running"])["rouge2"] == 100  # stemmed: run


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (None, "is no folder"),
        ((), "has no checkpoint yet"),
        (("config.gin", "metrics.jsonl", "checkpoints/"), "has no checkpoint yet"),
    ],
)
def test_before_training_one_line_tells_to_train(evaluate, names, reason):
    folder = evaluate.folder / "new_run"
    if names is not None:
        folder.mkdir()
        for name in names:
            (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()
    code, text = evaluate(**{"MODEL_DIR": str(folder), "evaluate.evaluate.output": None})
    assert code == 1 and text.count("\n") == 1
    assert f"MODEL_DIR {folder} {reason}: train first, by `python -m gkd train`" in text


def test_the_output_is_beside_its_run_and_named_json():
    """The runs of a sweep's row are numbered: each has results of its own."""
    for place in ("runs/gkd/0", "runs/gkd/0/checkpoints", "runs/gkd/0/checkpoints/8"):
        path = _output(place, None, "test")
        assert path == pathlib.Path("runs/gkd/0/evaluation-test.json")
    for name in ("eval-t0.3", "eval.jsonl"):
        with pytest.raises(ValueError, match=f"output {name} holds JSON: give it a name in .json"):
            _output("runs/gkd/0", name, "test")


def test_a_folder_of_another_format_is_explained_by_its_reader(evaluate):
    folder = evaluate.folder / "something"
    folder.mkdir()
    (folder / "notes.txt").touch()
    code, text = evaluate(**{"MODEL_DIR": str(folder), "evaluate.evaluate.output": None})
    assert code == 1 and f"{folder} is not a checkpoint" in text
