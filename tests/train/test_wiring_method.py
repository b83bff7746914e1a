"""Every macro of the method changes a number of one step, and it is the one worked out by hand.

A row's settings go through gin and the command line's reading of it as far as one compiled step.
`step_by_hand` works out loss, metrics and new parameters from the settings' names in NumPy; it
must give another loss where any one setting of the row is left at its default.
"""

import jax
import numpy as np
import pytest

from gkd.distill.types import TopK
from tests.train import step_by_hand, wiring
from tests.train.step_by_hand import ByHand

LOSSES = {name: f"@divergences.{name}" for name in (
    "forward_kl", "reverse_kl", "total_variation", "generalized_jsd", "skew_forward_kl",
    "skew_reverse_kl", "sampled_token_reverse_kl",
)}  # fmt: skip
ROUGE = {
    "REWARD": "@reward_functions.rouge",
    "reward_functions.rouge.name": "rouge1",
    "LAMBDA": 1.0,
}
REVERSE = {"DIVERGENCE": LOSSES["reverse_kl"]}

CASES = {
    "fine-tuning": {"NORMALISATION": "token"},
    "a temperature of each": {
        "DIVERGENCE": LOSSES["generalized_jsd"], "BETA": 0.3, "TEMPERATURE": (0.6, 1.7),
        "LAMBDA": 1.0, "SAMPLES": 2, "ROLLOUT_LENGTH": 3, "MICROBATCHES": 3,
        "SEED": 1,
    },
    "a list of temperatures": {
        "DIVERGENCE": LOSSES["total_variation"], "TEMPERATURE": [1.7, 0.6], "LAMBDA": 0.6,
        "MIXING": "example", "SAMPLES": 2, "ROLLOUT_LENGTH": 2, "SEED": 1,
    },
    "a schedule of λ": {
        **REVERSE, "LAMBDA": "@mixing.linear_schedule()", "MIXING": "example",
        "mixing.linear_schedule.start": 0.0, "mixing.linear_schedule.end": 0.8,
        "mixing.linear_schedule.steps": 2, "mixing.linear_schedule.after": 2,
    },
    "one coin for all": {**REVERSE, "LAMBDA": 0.6, "SEED": 1},
    "the most probable ids, tempered": {
        "DIVERGENCE": LOSSES["skew_forward_kl"], "LAMBDA": 1.0, "SAMPLING_TEMPERATURE": 0.3,
        "SAMPLING_TOP_K": 2,
    },
    "the smallest set with the mass": {
        "DIVERGENCE": LOSSES["skew_reverse_kl"], "LAMBDA": 1.0, "SAMPLING_TOP_P": 0.4,
        "NORMALISATION": "token",
    },
    "sampled tokens": {"DIVERGENCE": LOSSES["sampled_token_reverse_kl"], "LAMBDA": 1.0},
    "a reward of each": {**ROUGE, "ALPHA": 0.0, "ADVANTAGE": "none", "SAMPLES": 3},
    "a reward in a group": {**ROUGE, **REVERSE, "ALPHA": 0.3, "ADVANTAGE": "group", "SAMPLES": 3},
    "a standardised reward": {
        **ROUGE, **REVERSE, "ALPHA": 0.6, "ADVANTAGE": "group_standardised", "SAMPLES": 3,
        "MICROBATCHES": 2, "TEMPERATURE": 1.5,
    },
    "importance ratios": {
        **ROUGE, **REVERSE, "ALPHA": 0.6, "POLICY_LOSS": "grpo", "SAMPLES": 3,
        "ADVANTAGE": "group", "MICROBATCHES": 3, "SEED": 1,
    },
    "a reward that weighs nothing": {**ROUGE, **REVERSE, "ALPHA": 1.0},
    "a reward of some rows": {**ROUGE, "ALPHA": 0.0, "LAMBDA": 0.6, "MIXING": "example", "SEED": 2},
}  # fmt: skip
STEP = 3


def by_hand(settings):
    """The same settings, with what gin's functions give at this step."""
    known = dict(settings)
    if settings.get("LAMBDA") == "@mixing.linear_schedule()":
        known["LAMBDA"] = 0.8 * (STEP - 2) / 2
    return ByHand(known, step=STEP)


def full(settings):
    """The row with a teacher where something is compared with one."""
    return settings if "DIVERGENCE" in settings else {**settings, "TEACHER_MODEL": None}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_one_worked_out_by_hand(name):
    settings = CASES[name]
    program = wiring.step_program(full(settings))
    state = wiring.state_of(program, settings.get("SEED", 0), STEP)
    before = jax.device_get(state.params)
    after, got = wiring.take_step(program, state=state)
    expected = by_hand(settings)
    for metric, value in expected.metrics().items():
        assert got[metric] == pytest.approx(value, rel=2e-4, abs=2e-5), metric
    gradient = expected.gradient()
    assert got["gradient_norm"] == pytest.approx(step_by_hand.global_norm(gradient), rel=2e-4)
    new = step_by_hand.first_update(before, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, new)
    moved = jax.tree.map(lambda a, b: a - b, after.params, before)
    assert step_by_hand.global_norm(moved) > 1e-2
    assert int(after.step) == STEP + 1


def _without(settings, name):
    """The row with one macro left at its default, or changed where it cannot be left out."""
    fewer = {key: value for key, value in settings.items() if key != name}
    if name == "BETA":
        fewer["BETA"] = 0.7
    if name == "DIVERGENCE":
        fewer["DIVERGENCE"] = LOSSES["forward_kl" if "reverse" in settings[name] else "reverse_kl"]
    if name == "REWARD":
        fewer.pop("ALPHA")
    return fewer


def _matters(settings, name):
    """Whether the row means something else, and something at all, without this setting."""
    with_divergence = "DIVERGENCE" in settings
    if name in ("REWARD", "ALPHA"):
        return with_divergence and settings["ALPHA"] < 1
    return name in step_by_hand.DEFAULTS


@pytest.mark.parametrize("name", CASES)
def test_every_setting_of_a_row_matters_by_hand(name):
    """Or else the step above would be the same without it."""
    settings = CASES[name]
    loss = by_hand(settings).loss()
    for macro in settings:
        if _matters(settings, macro):
            assert abs(loss - by_hand(_without(settings, macro)).loss()) > 2e-3, macro


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_a_teacher_of_k_ids_is_the_one_worked_out_by_hand(tail):
    """What a file would say of each token: the teacher's three most probable ids."""
    settings = {"DIVERGENCE": LOSSES["forward_kl"], "TOP_K_TAIL": tail}
    settings["TEMPERATURE"] = (0.6, 1.0 if tail == "bucket" else 1.7)
    log_p = step_by_hand.log_softmax(ByHand(settings).teacher_logits[..., wiring.IDS])
    places = np.argsort(-log_p)[..., :3]
    known = np.take_along_axis(log_p, places, -1)
    top_k = TopK(np.int32(places + 1), np.float32(known))
    program = wiring.step_program(
        settings | {"TEACHER_TOP_K_FILE": "unread", "TEACHER_MODEL": None}
    )
    data = wiring.batch().replace(teacher_top_k=top_k)
    after, got = wiring.take_step(program, data=data)
    expected = ByHand(settings, top_k=top_k)
    assert got["loss"] == pytest.approx(expected.loss(), rel=2e-4)
    new = step_by_hand.first_update(expected.params, expected.gradient())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), after.params, new)
    others = [
        {"TEMPERATURE": 1.0},
        {"TOP_K_TAIL": {"bucket", "renormalise"}.difference({tail}).pop()},
    ]
    for other in others:
        assert abs(ByHand(settings | other, top_k=top_k).loss() - expected.loss()) > 2e-3
