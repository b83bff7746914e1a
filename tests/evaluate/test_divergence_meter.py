"""All divergences from one program against float64 NumPy on the full logits, also by position."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.decode.sampling import sample
from gkd.distill.divergences import reported_divergences
from gkd.distill.types import Batch
from gkd.evaluate.divergence_meter import DivergenceMeter
from gkd.models.interface import project
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from tests.distill.references import divergence
from tests.random_params import random_params

VOCABULARY, LENGTH, ROWS = 24, 7, 13  # rows that count: the second batch of 8 has 5
VALID = (np.arange(VOCABULARY) > 0) & (np.arange(VOCABULARY) < 20)


def _model(emb_dim, seed, mesh, rules, calls):
    config = T5Config(
        vocab_size=VOCABULARY, emb_dim=emb_dim, num_heads=2, head_dim=8, mlp_dim=16,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    model = as_seq2seq(config)
    params = random_params(model, seed)
    kernel = 3 * params["decoder"]["logits_dense"]["kernel"]
    params["decoder"]["logits_dense"]["kernel"] = kernel.at[:, 1].multiply(2)  # EOS comes early

    def encode(*arguments):
        calls.append(arguments[1].shape)
        return model.encode(*arguments)

    counted = dataclasses.replace(model, encode=encode)
    boxed = jax.eval_shape(model.init, jax.random.key(0))
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    return LoadedModel(config, counted, shardings, params, None)


def _logits(loaded, inputs, tokens):
    model = loaded.model
    shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]

    @jax.jit
    def logits(params, inputs, shifted):
        hidden = model.decode_hidden(params, model.encode(params, inputs), shifted)
        return project(hidden.last, model.head(params))

    return np.asarray(logits(loaded.params, inputs, shifted))


def _rows(random, count, longest):
    lengths = random.integers(1, longest + 1, count)
    rows = random.integers(2, 20, (count, longest)).astype(np.int32)
    rows[np.arange(count), lengths - 1] = 1
    rows[np.arange(longest) >= lengths[:, None]] = 0
    rows[0] = 5  # cut off: no EOS
    return rows


@pytest.fixture(scope="module")
def measured():
    """(what the meter says, {writer: (tokens, student logits, teacher logits)}, shapes encoded)."""
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    encoded_by_student, encoded_by_teacher = [], []
    student = _model(16, 1, mesh, rules, encoded_by_student)
    teacher = _model(24, 2, mesh, rules, encoded_by_teacher)
    random = np.random.default_rng(0)
    inputs, targets = _rows(random, 16, 5), _rows(random, 16, LENGTH)
    inputs[ROWS:], targets[ROWS:] = 0, 0
    weights = (np.arange(16) < ROWS).astype(np.float32)
    batches = [Batch(*(x[i : i + 8] for x in (inputs, targets, weights))) for i in (0, 8)]
    key = jax.random.key(5)
    meter = DivergenceMeter(student, teacher, mesh, jnp.asarray(VALID), keep_tokens=True)
    result = meter.measure(student.params, teacher.params, batches, key)
    passes = (list(encoded_by_student), list(encoded_by_teacher))

    @jax.jit
    def write(params):
        encoded = student.model.encode(params, jnp.asarray(inputs))
        valid, rows = jnp.asarray(VALID), jnp.arange(16)
        return sample(
            student.model, params, encoded, key, max_length=LENGTH, valid=valid, rows=rows
        ).tokens

    tokens = {"on_policy": np.asarray(write(student.params)), "reference": targets}
    wanted = {
        writer: (rows, _logits(student, inputs, rows), _logits(teacher, inputs, rows))
        for writer, rows in tokens.items()
    }
    return result, wanted, passes


@pytest.mark.parametrize("writer", ["on_policy", "reference"])
def test_every_divergence_is_equation_2_of_full_logits(measured, writer):
    result, wanted, _ = measured
    tokens, student, teacher = wanted[writer]
    assert len(result.metrics) == 2 * len(reported_divergences()) == 16
    for name in reported_divergences():
        values = divergence(name, student, teacher, valid=VALID)
        rows = [values[i][: np.count_nonzero(tokens[i])].mean() for i in range(ROWS)]
        assert result.metrics[f"{writer}_{name}"] == pytest.approx(np.mean(rows), rel=2e-5)


@pytest.mark.parametrize(
    "curve, writer", [("free_running", "on_policy"), ("teacher_forced", "reference")]
)
def test_a_curve_is_the_mean_over_the_rows_that_are_so_long(measured, curve, writer):
    result, wanted, _ = measured
    tokens, student, teacher = wanted[writer]
    there = tokens[:ROWS] > 0
    assert len(set(there.sum(axis=1))) > 2, "rows must differ in length for this to show anything"
    longest = there.any(axis=0).sum()
    got = result.by_position[curve]
    assert got["rows"] == there.sum(axis=0)[:longest].tolist()
    for name in ("forward_kl", "reverse_kl"):
        values = divergence(name, student, teacher, valid=VALID)[:ROWS]
        means = [values[there[:, t], t].mean() for t in range(longest)]
        np.testing.assert_allclose(got[name], means, rtol=2e-5)


@pytest.mark.parametrize(
    "name, writer", [("free_running", "on_policy"), ("teacher_forced", "reference")]
)
def test_every_sequence_has_its_tokens_and_their_kl(measured, name, writer):
    result, wanted, _ = measured
    tokens, student, teacher = wanted[writer]
    assert len(result.by_token) == ROWS
    values = divergence("forward_kl", student, teacher, valid=VALID)
    for i, example in enumerate(result.by_token):
        length = np.count_nonzero(tokens[i])
        assert example[name]["tokens"] == tokens[i, :length].tolist()
        np.testing.assert_allclose(example[name]["forward_kl"], values[i, :length], atol=6e-5)


def test_each_model_encodes_the_prompts_once(measured):
    assert measured[2] == ([(8, 5)], [(8, 5)])  # traced once, for both batches
