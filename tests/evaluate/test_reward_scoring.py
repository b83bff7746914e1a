"""Rewards of an evaluation's outputs: of texts by hand, of a model against the model itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.evaluate.reward_scoring import RewardScorer, load_reward_model
from gkd.metrics import reward_functions
from gkd.models.interface import project
from gkd.models.t5 import as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel
from gkd.vocabularies import vocabularies
from tests.evaluate.option_tasks import option_evaluation
from tests.infer.inference import CONFIG, bytes_of
from tests.random_params import random_params

PROMPTS = ("a: short", "a: a much longer prompt than the other one", "b", "c: the fourth") * 2
OUTPUTS = ("yes", "no, not at all", "", "so") * 2


def test_a_model_judges_each_output_by_its_own_prompt():
    """Prompts of two lengths, fewer than two batches: P(token '1') of the assembled text, NumPy."""
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    config = dataclasses.replace(CONFIG)
    model = as_seq2seq(config)
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(1))
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    judge = LoadedModel(config, model, shardings, random_params(model), None)
    reward = reward_functions.entailment(prompt_prefix="a: ", input_length=120)
    ids, outputs = ([bytes_of(text) for text in texts] for texts in (PROMPTS, OUTPUTS))
    scorer = RewardScorer(reward, judge, vocabularies.byte_level(), mesh, 20, (32, 60), 8)
    got = scorer.scores(PROMPTS, ids, OUTPUTS, outputs, [""] * 8)
    for prompt, output, score in zip(PROMPTS[:4], OUTPUTS[:4], got[:4], strict=True):
        text = f"premise: {prompt.removeprefix('a: ')} hypothesis: {output}"
        row = np.zeros((1, 120), np.int32)
        row[0, : len(bytes_of(text))] = bytes_of(text)
        encoded = model.encode(judge.params, jnp.asarray(row))
        hidden = model.decode_hidden(judge.params, encoded, jnp.zeros((1, 1), jnp.int32))
        logits = np.asarray(project(hidden.last, model.head(judge.params)), np.float64)[0, 0]
        want = np.exp(logits - np.logaddexp.reduce(logits))[bytes_of("1")[0]]
        assert score == pytest.approx(want, abs=1e-6), text
    assert len({round(score, 6) for score in got}) == 4
    assert got[:4] == pytest.approx(got[4:])


def test_the_reward_of_texts_is_a_mean_over_all_samples():
    """Two samples an example: the first repeats its reference, the second adds three letters."""
    evaluation = dataclasses.replace(option_evaluation(meshes.make_mesh()), reward=_letters_added)
    targets = evaluation.examples.targets
    assert len(set(targets)) > 1
    texts = [text + more for text in targets for more in ("", "abc")]
    got = evaluation._reward(texts, [[5, 1]] * len(texts), 2)
    assert got == pytest.approx(100 * 1.5)


def _letters_added(prompts, samples, references):
    assert len(prompts) == len(samples) == len(references)
    pairs = zip(samples, references, strict=True)
    return [len(text) - len(reference) + 100 * (reference not in text) for text, reference in pairs]


def test_a_reward_of_texts_needs_no_model_and_a_models_needs_one():
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    assert load_reward_model(reward_functions.exact_number, None, None, mesh, rules, None) is None
    with pytest.raises(ValueError, match="set REWARD_MODEL"):
        load_reward_model(
            reward_functions.entailment(),
            None,
            None,
            mesh,
            rules,
            option_evaluation(mesh).task,
        )
