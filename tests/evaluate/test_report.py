"""The records of an evaluation, by hand."""

import dataclasses
import json

import pytest

from gkd.evaluate import report
from gkd.evaluate.evaluation import Generated
from gkd.infer.decode_options import Decoding
from gkd.parallel import mesh as meshes
from tests.evaluate.option_tasks import option_evaluation

GREEDY = Generated(
    {"bleu": 50.0},
    [[{"text": "a"}], [{"text": "b"}]],
    reference_log_probs=[[-1.0, -2.0], [-6.0]],
    signatures={"bleu": ["tok:13a", "tok:13a", "tok:zh"]},
)


def test_metrics_by_model_and_the_mean_over_all_reference_tokens():
    found = report.all_metrics({"student": {"greedy": GREEDY}}, None)
    perplexity = pytest.approx(20.0855, abs=1e-4)  # e³
    references = {"reference_log_prob": -3, "reference_perplexity": perplexity}
    assert found == {"student": {"greedy": {"bleu": 50.0}, "references": references}}


def test_a_signature_names_every_tokenizer_once():
    found = report.signatures({"student": {"greedy": GREEDY}})
    assert found["bleu"] == "tok:13a; tok:zh"
    assert "rouge" in found and report.signatures()["bleu"] != found["bleu"]


def test_decodings_are_recorded_with_the_penalty_that_was_used():
    facts = report.decoding_facts({"beam_4": Decoding(beams=4), "options": None})
    assert facts["options"] is None
    assert (facts["beam_4"]["beams"], facts["beam_4"]["length_penalty"]) == (4, 0.6)


def test_outputs_are_one_line_per_example(tmp_path):
    evaluation = option_evaluation(meshes.make_mesh())
    examples = dataclasses.replace(evaluation.examples, inputs=("x", "ü"), targets=("1", "2"))
    evaluation = dataclasses.replace(evaluation, examples=examples)
    report.write_outputs(tmp_path / "a.jsonl", evaluation, {"student": {"greedy": GREEDY}})
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["input"] for row in rows] == ["x", "ü"]
    assert rows[1]["student"] == {"greedy": [{"text": "b"}], "reference_log_probs": [-6.0]}
    assert "references" not in rows[1]
    examples = dataclasses.replace(examples, several=(("1", "one"), ("2",)))
    evaluation = dataclasses.replace(evaluation, examples=examples)
    report.write_outputs(tmp_path / "a.jsonl", evaluation, {"student": {"greedy": GREEDY}})
    several = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert (several["reference"], several["references"]) == ("1", ["1", "one"])
    assert rows[1]["reference"] == "2" and rows[1]["index"] == pytest.approx(1)
