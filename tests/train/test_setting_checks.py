"""Settings of a method that do not fit together."""

import dataclasses
import functools

import pytest

from gkd.configuration.experiment import Method, Teacher
from gkd.distill import divergences, mixing
from gkd.distill.replay import Replay
from gkd.metrics import reward_functions
from gkd.train.method import needs_teacher, rewards_on_host
from gkd.train.setting_checks import check_method
from tests.train.training import train

GOOD = {
    "divergence": divergences.forward_kl, "on_policy_fraction": 1.0, "teacher": "runs/teacher",
}  # fmt: skip
RL = {"reward": reward_functions.exact_number, "alpha": 0.5}
SAMPLED = {"divergence": divergences.sampled_token_reverse_kl}


def checked(dropout_rate=0.0, **settings):
    """A method whose settings fit together; the teacher's are given beside them."""
    files = {"checkpoint": settings.pop("teacher"), "top_k_file": settings.pop("top_k_file", None)}
    method = Method(**settings)
    check_method(method, Teacher(**files), dropout_rate)
    return method


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mixing": "row"}, "mixing is 'row': choose one of batch, example"),
        ({"samples": 0}, "samples is 0"),
        ({"on_policy_fraction": 0.0, "samples": 2}, "but λ is 0: the student samples nothing"),
        ({"rollout_length": 0}, "rollout_length is 0"),
        ({"sampling_temperature": 0.0}, "sampling_temperature is 0"),
        ({"temperature": (1.0, 0.0)}, r"temperature\[1\] is 0.0: use more than 0"),
        ({"divergence": "forward_kl"}, "write @divergences.forward_kl, without ''"),
        ({"teacher": None}, "a divergence needs a teacher: set TEACHER"),
        ({"beta": 0.5}, "BETA is 0.5 and DIVERGENCE forward_kl"),
        ({"divergence": None}, "SFT would ignore the teacher"),
        ({"divergence": None, "teacher": None}, "teaches nothing: set DIVERGENCE and TEACHER"),
        ({"alpha": 0.5}, "ALPHA is 0.5, but no REWARD shares the loss"),
        (
            {"divergence": None, "teacher": None, "on_policy_fraction": 0.0, "beta": 0.5},
            "BETA is 0.5, but DIVERGENCE is not set",
        ),
        (
            {"divergence": None, "teacher": None, "temperature": 2.0},
            "TEMPERATURE is 2.0, but DIVERGENCE is not set",
        ),
        ({"advantage": "group"}, "ADVANTAGE is 'group', but REWARD is not set"),
        ({"reward_model": "runs/r"}, "REWARD_MODEL is 'runs/r', but REWARD is not set"),
        ({**RL, "alpha": 0.0, "divergence": None}, "a REWARD reads no teacher"),
        ({**RL, "alpha": 1.5}, "alpha is 1.5: use 1 or less"),
        ({**RL, "on_policy_fraction": 0.0}, "a REWARD scores the student's own samples"),
        ({**RL, "normalisation": "token"}, "with a REWARD the loss is equation 5's"),
        ({**RL, "sampling_temperature": 0.7}, "needs samples of"),
        ({**RL, "advantage": "group"}, "set SAMPLES to 2 or more"),
        ({**RL, "divergence": None, "teacher": None}, "ALPHA is 0.5 but DIVERGENCE is not set"),
        ({"replay": Replay()}, "λ is 1.0, but REPLAY decides who writes: set LAMBDA to 0"),
        ({"replay": Replay(), "on_policy_fraction": 0.0, "samples": 2}, "leave SAMPLES at 1"),
        ({"policy_loss": "grpo"}, "POLICY_LOSS is 'grpo', but REWARD is None and ALPHA 1.0"),
        ({**RL, "alpha": 1.0, "policy_loss": "grpo"}, "no reward weighs in the loss"),
        ({**RL, "ratio_clip": 0.2}, "RATIO_CLIP is 0.2, but POLICY_LOSS 'reinforce' has no"),
        ({"updates_per_rollout": 2}, "UPDATES_PER_ROLLOUT is 2, but POLICY_LOSS 'reinforce'"),
        ({"top_k_file": "x.jsonl"}, "TEACHER and TEACHER_TOP_K_FILE are both set"),
        ({"top_k_file": "x.jsonl", "teacher": None}, "set LAMBDA to 0, or a TEACHER"),
        (
            {**SAMPLED, "on_policy_fraction": 0.5},
            "is defined on the student's own tokens, but λ is 0.5",
        ),
        (
            {**SAMPLED, "sampling_top_p": 0.9},
            "SAMPLING_TOP_K is 0 and SAMPLING_TOP_P 0.9",
        ),
        ({**SAMPLED, "sampling_top_k": 5}, "SAMPLING_TOP_K is 5 and SAMPLING_TOP_P 1.0"),
        ({**SAMPLED, "sampling_temperature": 0.7}, "SAMPLING_TEMPERATURE is 0.7"),
        ({**SAMPLED, "temperature": 2.0}, "at the student's TEMPERATURE 2.0 needs samples"),
        ({**SAMPLED, "temperature": [2.0, 1.0]}, "at the student's TEMPERATURE 2.0 needs samples"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message):
        checked(**{**GOOD, **changes})


def test_what_fits_is_accepted():
    checked(**GOOD)
    checked(**{**GOOD, "on_policy_fraction": mixing.linear_schedule(0.0, 1.0, 5), "samples": 2})
    alone = checked(**{**GOOD, **RL, "alpha": 0.0, "divergence": None, "teacher": None})
    assert rewards_on_host(alone) and not needs_teacher(alone)
    unweighed = checked(**{**GOOD, **RL, "alpha": 0.0})
    assert not needs_teacher(unweighed), "no teacher is loaded for a divergence that weighs nothing"
    assert not rewards_on_host(checked(**GOOD))
    assert not rewards_on_host(checked(**{**GOOD, **RL, "alpha": 1.0})), "only measured"
    checked(**{**GOOD, **SAMPLED, "temperature": (1.0, 2.0)})
    checked(**{**GOOD, **SAMPLED, "temperature": 0.7, "sampling_temperature": 0.7})


def test_a_partial_of_a_divergence_is_a_divergence():
    """functools.partial has no __name__: it raised AttributeError."""
    bound = functools.partial(divergences.generalized_jsd, beta=0.1)
    checked(**{**GOOD, "divergence": bound})
    with pytest.raises(ValueError, match="beta of generalized_jsd is already bound to 0.1"):
        checked(**{**GOOD, "divergence": bound, "beta": 0.5})
    sampled = functools.partial(divergences.sampled_token_reverse_kl)
    with pytest.raises(ValueError, match="but λ is 0.5"):
        checked(**{**GOOD, "divergence": sampled, "on_policy_fraction": 0.5})


def test_a_method_with_a_parameter_of_its_divergence_can_be_changed():
    """It bound β when it was made: a copy had bound it twice."""
    method = checked(**{**GOOD, "divergence": divergences.generalized_jsd, "beta": 0.1})
    copy = dataclasses.replace(method, normalisation="token")
    assert (copy.beta, copy.divergence, copy.normalisation) == (
        0.1, divergences.generalized_jsd, "token",
    )  # fmt: skip
    with pytest.raises(ValueError, match="0 < beta < 1, got 1.0"):
        check_method(dataclasses.replace(method, beta=1.0), Teacher(checkpoint="runs/teacher"))


def test_a_policy_gradient_refuses_dropout(capsys):
    """The samples are of the student without dropout, the gradient would be of another."""
    checked(dropout_rate=0.1, **GOOD)
    for changes in (SAMPLED, RL):
        checked(**{**GOOD, **changes})
        with pytest.raises(ValueError, match="DROPOUT_RATE is above 0"):
            checked(dropout_rate=0.1, **{**GOOD, **changes})
    options = (
        "DIVERGENCE=@divergences.sampled_token_reverse_kl", "LAMBDA=1.0", "DRY_RUN=True",
        "TEACHER_MODEL=@t5.T5Config()",
    )  # fmt: skip
    assert train("unused", *options) == 0
    assert train("unused", *options, "DROPOUT_RATE=0.1") == 1
    assert "gkd: error: DROPOUT_RATE is above 0" in capsys.readouterr().err
