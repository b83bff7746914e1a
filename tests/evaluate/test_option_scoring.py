"""The likeliest option against float64 NumPy, through the evaluation that training uses too."""

import dataclasses

import jax
import numpy as np
import pytest

from gkd.models.interface import project
from gkd.models.t5 import as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from tests.evaluate.option_tasks import LENGTHS, QUESTIONS, option_evaluation, padded
from tests.infer.inference import CONFIG, bytes_of


def _log_likelihoods(model, params, pairs):
    """Of (prompt, option) pairs: Σ log softmax(raw logits) over the bytes and EOS, in float64."""
    prompts, options = (
        padded(column, length)
        for column, length in zip(zip(*pairs, strict=True), LENGTHS, strict=True)
    )

    @jax.jit
    def logits_of(params, prompts, shifted):
        hidden = model.decode_hidden(params, model.encode(params, prompts), shifted)
        return project(hidden.last, model.head(params))

    logits = np.float64(logits_of(params, prompts, np.pad(options, ((0, 0), (1, 0)))[:, :-1]))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    scores = {}
    for i, pair in enumerate(pairs):
        ids = bytes_of(pair[1])
        scores[pair] = log_probs[i, np.arange(len(ids)), ids].sum()
    return scores


def test_the_prediction_is_the_option_of_highest_log_likelihood(model):
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    seq2seq, calls = as_seq2seq(CONFIG), []

    def encode(*arguments):
        calls.append(arguments[1].shape)
        return seq2seq.encode(*arguments)

    shardings = meshes.parameter_shardings(
        mesh, jax.eval_shape(seq2seq.init, jax.random.key(0)), rules
    )
    counted = dataclasses.replace(seq2seq, encode=encode)
    loaded = LoadedModel(CONFIG, counted, shardings, None, None)  # as a student in training
    evaluation = option_evaluation(mesh)
    generated = evaluation.generator(loaded)(model)
    assert calls == [(8, 60), (8, 16)], "a prompt is encoded once, not once an option"
    pairs = dict.fromkeys((row[0], option) for row in QUESTIONS for option in row[1])
    wanted_scores = _log_likelihoods(seq2seq, model, list(pairs))
    right = {"a": [], "b": []}
    for (text, options, wanted), record in zip(QUESTIONS, generated.records, strict=True):
        scores = [wanted_scores[text, option] for option in options]
        got = [record[0]["options"][option] for option in options]
        np.testing.assert_allclose(got, scores, atol=2e-4)
        best = options[int(np.argmax(scores))]
        assert record[0]["text"] == best
        right[text[0]].append(100.0 * (best == wanted))
    assert 0 < sum(right["a"] + right["b"]) < 1000, "some right, some wrong"
    a, b = np.mean(right["a"]), np.mean(right["b"])
    assert generated.metrics == pytest.approx(
        {
            "exact_match": np.mean(right["a"] + right["b"]),
            "a/exact_match": a, "b/exact_match": b, "macro_exact_match": (a + b) / 2,
        }
    )  # fmt: skip


def test_of_equal_options_the_first_is_chosen(model):
    """Parameters of zero make every token's probability 1/V: options of one length are equal."""
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    seq2seq = as_seq2seq(CONFIG)
    boxed = jax.eval_shape(seq2seq.init, jax.random.key(0))
    loaded = LoadedModel(
        CONFIG, seq2seq, meshes.parameter_shardings(mesh, boxed, rules), None, None
    )
    zeros = jax.tree.map(np.zeros_like, model)
    records = option_evaluation(mesh).generator(loaded)(zeros).records
    assert [record[0]["text"] for record in records] == ["A", "(A)", "no", "B", "C"] * 2
    for record in records:
        for option, score in record[0]["options"].items():
            assert score == pytest.approx(-len(bytes_of(option)) * np.log(CONFIG.vocab_size))
