"""Evaluation of a teacher that reads another prompt than the student."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.data import tasks, teacher_inputs
from gkd.evaluate.evaluation import host_batch, make_evaluation
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from tests.random_params import random_params


@pytest.fixture(scope="module")
def evaluations():
    """An evaluation whose teacher sees the solution, and one where that is everybody's prompt."""
    base = tasks.arithmetic(rows={"validation": 16}, steps=2)
    template = teacher_inputs.template("{inputs} {targets}")
    mesh = meshes.make_mesh()
    made = make_evaluation(
        teacher_inputs.with_teacher_inputs(base, template, 48), "validation", mesh,
        jnp.arange(56) > 0, batch_size=8, input_length=24, target_length=6,
    )  # fmt: skip
    batches = tuple(
        {**batch, "encoder_input_tokens": batch["teacher_encoder_input_tokens"]}
        for batch in made.examples.batches
    )
    shown = dataclasses.replace(made.examples, batches=batches)
    return made, dataclasses.replace(made, task=base, examples=shown)


def loaded(mesh, emb_dim, seed):
    config = T5Config(
        vocab_size=56, emb_dim=emb_dim, num_heads=2, head_dim=8, mlp_dim=16,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    model = as_seq2seq(config)
    boxed = jax.eval_shape(model.init, jax.random.key(0))
    shardings = meshes.parameter_shardings(mesh, boxed, meshes.rules_for())
    params = jax.tree.map(lambda x: 2 * x, random_params(model, seed))
    return LoadedModel(config, model, shardings, params, None)


def test_the_teachers_outputs_answer_its_own_prompts(evaluations):
    made, shown = evaluations
    model = loaded(made.mesh, 16, 0)
    records = {
        name: [row[0]["tokens"] for row in generate(model.params).records]
        for name, generate in {
            "teacher": made.generator(model, teacher=True),
            "student": made.generator(model),
            "shown": shown.generator(model),
        }.items()
    }
    assert records["teacher"] == records["shown"] != records["student"]


def test_the_meter_gives_each_model_its_own_prompts(evaluations):
    """Student P on x, teacher on x with the solution: as if two batches had been measured."""
    made, shown = evaluations
    student, teacher = loaded(made.mesh, 16, 0), loaded(made.mesh, 24, 1)
    key = jax.random.key(0)
    own = made.divergences(student, teacher, None)(student.params, teacher.params, key).metrics
    both = shown.divergences(student, teacher, None)(student.params, teacher.params, key).metrics
    assert abs(own["reference_forward_kl"] - both["reference_forward_kl"]) > 1e-4
    # KL(P‖Q) of the reference from full logits, in float64.
    values = []
    for batch in map(host_batch, made.examples.batches):
        tokens = batch.decoder_target_tokens
        shifted = np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
        log_p, log_q = (
            log_probs(model, prompts, shifted)
            for model, prompts in (
                (teacher, batch.teacher_encoder_input_tokens),
                (student, batch.encoder_input_tokens),
            )
        )
        kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        values += [row[:n].mean() for row, n in zip(kl, (tokens > 0).sum(1), strict=True) if n]
    assert own["reference_forward_kl"] == pytest.approx(np.mean(values), rel=1e-4)


def log_probs(loaded, prompts, shifted):
    model = loaded.model
    hidden = model.decode_hidden(
        loaded.params, model.encode(loaded.params, jnp.asarray(prompts)), jnp.asarray(shifted)
    )
    head = model.head(loaded.params)
    kernel = np.float64(head.kernel.T if head.transposed else head.kernel)
    logits = np.float64(hidden.last) @ kernel * head.scale
    logits = logits[..., 1:]  # pad has no probability
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
