"""An evaluation set: its identity, its table, and its keys."""

import dataclasses

import jax
import numpy as np

from gkd.evaluate.evaluation import evaluation_key
from gkd.parallel import mesh as meshes
from tests.evaluate.option_tasks import QUESTIONS, option_evaluation


def made():
    return option_evaluation(meshes.make_mesh())


def test_the_fingerprint_is_of_the_rows_and_of_nothing_else():
    evaluation = made()
    assert made().fingerprint() == evaluation.fingerprint()
    changed = dataclasses.replace(
        evaluation.examples, targets=("A", *evaluation.examples.targets[1:])
    )
    other = dataclasses.replace(evaluation, examples=changed)
    assert other.fingerprint() != evaluation.fingerprint()
    several = tuple((target, "more") for target in evaluation.examples.targets)
    more = dataclasses.replace(evaluation.examples, several=several)
    other = dataclasses.replace(evaluation, examples=more)
    assert other.fingerprint() != evaluation.fingerprint()


def test_the_table_has_prompt_outputs_and_reference_side_by_side():
    rows = made().sample_table({"student": ["x", "y", "z"] * 4}, rows=2)
    assert [row["student"] for row in rows] == ["x", "y"]
    assert list(rows[0].values()) == [QUESTIONS[0][0], "x", QUESTIONS[0][2]]
    assert len(made().sample_table({}, rows=100)) == len(QUESTIONS)


def test_evaluations_have_keys_of_their_own():
    keys = [
        np.asarray(key) for key in (evaluation_key(0), evaluation_key(1), jax.random.PRNGKey(0))
    ]
    assert len({key.tobytes() for key in keys}) == 3
