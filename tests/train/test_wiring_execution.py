"""How a step is run: dtypes, stacked layers, recomputation, dropout, microbatches, the mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models.t5 import T5, stack_layers, unstack_layers
from tests.train import step_by_hand, wiring
from tests.train.step_by_hand import ByHand

FORWARD = {"DIVERGENCE": "@divergences.forward_kl"}
DROPOUT = 0x7FFFFFFE


def test_each_model_computes_in_its_own_dtype():
    """A pair of float32 and bfloat16 is told apart from the three other pairs."""

    sharp = FORWARD | {"TEMPERATURE": 0.3}  # logits further apart: rounding shows

    def loss(student, teacher):
        configs = (
            dataclasses.replace(config, dtype=dtype)
            for config, dtype in ((wiring.STUDENT, student), (wiring.TEACHER, teacher))
        )
        rounded = wiring.teacher_params()
        if teacher == "bfloat16":  # its parameters are kept in it, too
            rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), rounded)
        return ByHand(sharp, teacher=rounded, configs=tuple(configs)).loss()

    kinds = ("float32", "bfloat16")
    by_hand = {pair: loss(*pair) for pair in ((a, b) for a in kinds for b in kinds)}
    settings = {"STUDENT_DTYPE": "bfloat16", "TEACHER_DTYPE": "bfloat16"}
    _, got = wiring.take_step(wiring.step_program(sharp | settings))
    wanted = by_hand.pop(("bfloat16", "bfloat16"))
    assert min(abs(wanted - other) for other in by_hand.values()) > 0.05
    assert got["loss"] == pytest.approx(wanted, abs=0.02)
    program = wiring.step_program(FORWARD | settings | {"STUDENT_DTYPE": "float32"})
    assert (program.student.config.dtype, program.teacher.config.dtype) == kinds
    for loaded, dtype in ((program.student, "float32"), (program.teacher, "bfloat16")):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.shapes)} == {dtype}


def test_stacked_layers_and_recomputation_change_no_number():
    settings = {"STUDENT_STACKED": True, "TEACHER_STACKED": True, "REMAT": True}
    program = wiring.step_program(FORWARD | settings)
    step = str(jax.make_jaxpr(program.step.step)(
        program.state.abstract, program.teacher.shapes, program.batch
    ))  # fmt: skip
    plain = wiring.step_program(FORWARD)
    usual = str(jax.make_jaxpr(plain.step.step)(
        plain.state.abstract, plain.teacher.shapes, plain.batch
    ))  # fmt: skip
    assert "remat" in step and "remat" not in usual
    assert step.count("scan[") >= usual.count("scan[") + 4, "both stacks of both models"
    params = stack_layers(wiring.student_params())
    state = wiring.state_of(program, params=params)
    after, got = wiring.take_step(
        program, state=state, teacher=stack_layers(wiring.teacher_params())
    )
    expected = ByHand(FORWARD)
    assert got["loss"] == pytest.approx(expected.loss(), rel=1e-4)
    new = step_by_hand.first_update(expected.params, expected.gradient())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), unstack_layers(after.params), new
    )


def test_dropout_is_the_students_while_it_learns_and_new_everywhere():
    """A mask of its own for each step, microbatch, and for encoder and decoder; none in samples."""
    settings = FORWARD | {"LAMBDA": 1.0, "MICROBATCHES": 2, "DROPOUT_RATE": 0.3, "SEED": 4}
    program = wiring.step_program(settings)
    compiled = program.compile()
    module = T5(dataclasses.replace(wiring.STUDENT, dropout_rate=0.3))

    def with_dropout(params, prompts, tokens, key):
        encoder, decoder = (jax.random.fold_in(key, number) for number in (0, 1))
        variables = {"params": jax.tree.map(jnp.asarray, params)}
        encoded = module.apply(
            variables, jnp.asarray(prompts), False, rngs={"dropout": encoder}, method=T5.encode
        )
        hidden = module.apply(
            variables, encoded, jnp.asarray(step_by_hand.shifted(tokens)), False,
            rngs={"dropout": decoder}, method=T5.decode_hidden,
        ).last  # fmt: skip
        return np.float64(hidden) @ np.float64(params["decoder"]["logits_dense"]["kernel"])

    found = []
    for step in (0, 7):
        _, got = wiring.take_step(program, compiled, wiring.state_of(program, 4, step))
        expected = ByHand(settings, step=step)
        assert got["sample_entropy"] == pytest.approx(
            expected.metrics()["sample_entropy"], rel=1e-4
        )
        logits = np.empty_like(expected.student_logits)
        for part in (0, 1):  # every second prompt
            key = jax.random.fold_in(jax.random.fold_in(expected.key, DROPOUT), part)
            rows = slice(part, None, 2)
            prompts, tokens = expected.rollout.prompts[rows], expected.rollout.tokens[rows]
            logits[rows] = with_dropout(expected.params, prompts, tokens, key)
        without = expected.loss()
        expected.student_logits = logits
        assert got["loss"] == pytest.approx(expected.loss(), rel=1e-4)
        assert abs(expected.loss() - without) > 1e-2
        found.append(got["loss"])
    assert abs(found[0] - found[1]) > 1e-2


def test_the_mesh_is_the_one_asked_for():
    settings = FORWARD | {"BATCH_SIZE": 8, "MODEL_PARALLELISM": 2, "FULLY_SHARDED": True}
    program = wiring.step_program(settings, devices=4)
    assert dict(program.mesh.shape) == {"data": 2, "model": 2}
    embedding = program.state.abstract.params["token_embedder"]["embedding"]
    assert embedding.sharding.shard_shape(embedding.shape) == (28, 4), "split over both axes"
    program = wiring.step_program(settings | {"FULLY_SHARDED": False}, devices=4)
    embedding = program.state.abstract.params["token_embedder"]["embedding"]
    assert embedding.sharding.shard_shape(embedding.shape) == (28, 8)
    rows = {"BATCH_SIZE": 8, "INPUT_LENGTH": 7, "TARGET_LENGTH": 9, "EVALUATION_BATCH_SIZE": 4}
    program = wiring.step_program(FORWARD | rows)
    assert program.batch.encoder_input_tokens.shape == (8, 7)
    assert program.batch.decoder_target_tokens.shape == (8, 9)
    assert program.evaluation_rows == 4


def test_a_models_reward_judges_each_sample_by_its_prompt():
    """P(token '1') of the judge's first answer to prompt and sample, one after the other."""
    settings = {
        "REWARD": "@reward_functions.entailment()", "reward_functions.entailment.premise": "",
        "reward_functions.entailment.hypothesis": "",
        "reward_functions.entailment.prompt_prefix": "",
        "reward_functions.entailment.input_length": 12, "ALPHA": 0.0, "LAMBDA": 1.0,
        "REWARD_ARCHITECTURE": "@teacher/t5.T5Config()", "TEACHER_MODEL": None,
    }  # fmt: skip
    program = wiring.step_program(settings)
    judge = dataclasses.replace(program.reward_model, params=wiring.teacher_params())
    program = dataclasses.replace(program, reward_model=judge)
    _, got = wiring.take_step(program)
    expected = ByHand({"LAMBDA": 1.0})
    assert got["on_policy"] == 1
    one = program.task.vocabulary.encode("1")[0]
    values = []
    for prompt, tokens in zip(expected.rollout.prompts, expected.rollout.tokens, strict=True):
        words = [token for token in (*prompt, *tokens) if token > 1] + [1]
        row = np.int32([words + [0] * (12 - len(words))])
        logits = step_by_hand.raw_logits(wiring.TEACHER, judge.params, row, np.int32([[1]]))
        values.append(np.exp(step_by_hand.log_softmax(logits[0, 0]))[one])
    weights = np.float64(wiring.WEIGHTS)
    assert got["reward"] == pytest.approx(weights @ values / weights.sum(), rel=1e-4)
    assert np.std(values) > 0.1 * np.mean(values)
