"""Runs with the loss of an inner layer (OISD): its settings wired, and an exact continuation."""

import jax
import pytest

from gkd.models.interface import Hidden
from gkd.models.scoring import score_tokens
from tests.step_programs import program_of
from tests.train.training import DISTIL, fails, train_whole_and_in_parts

REWARDED = (
    "REWARD=@reward_functions.exact_number", "ALPHA=0.0", "LAMBDA=1.0", "SAMPLES=2",
    "ADVANTAGE='group_standardised'",
)  # fmt: skip
LOSS = "AUXILIARY_LOSS=@inner_layer.InnerLayerLoss()"
TWO_LAYERS = "t5.T5Config.num_decoder_layers=2"
OISD = (*REWARDED, LOSS, TWO_LAYERS, "inner_layer.InnerLayerLoss.layer=1")


def hidden_of(model, program):
    """The abstract `Hidden` of the batch's targets."""

    def decoded(params, batch):
        encoded = model.encode(params, batch.encoder_input_tokens)
        return model.decode_hidden(params, encoded, batch.decoder_target_tokens)

    return jax.eval_shape(decoded, program.student.shapes, program.batch)


def test_the_update_alone_reads_the_inner_layer():
    program = program_of(*OISD)
    inner = hidden_of(program.step.student, program).inner
    assert inner.hidden.shape == (16, 12, 16) and inner.attention.shape == (16, 12, 12)
    assert hidden_of(program.student.model, program).inner is None  # evaluated, sampled from


@pytest.mark.parametrize("settings", [(), (*DISTIL, "TEACHER_MODEL=%STUDENT_MODEL"), REWARDED])
def test_other_methods_run_the_model_as_it_is(settings):
    program = program_of(*settings)
    assert program.step.student is program.student.model
    hidden = hidden_of(program.step.student, program)
    assert hidden == Hidden(hidden.last)

    def logits(params, batch):
        encoded = program.step.student.encode(params, batch.encoder_input_tokens)
        tokens = batch.decoder_target_tokens
        return score_tokens(program.step.student, params, encoded, tokens)

    assert jax.eval_shape(logits, program.student.shapes, program.batch).inner is None


@pytest.mark.parametrize(
    "settings, message",
    [
        (OISD[5:], "but REWARD is None and ALPHA 1.0: set REWARD, and ALPHA below 1"),
        ((*OISD, "ALPHA=1.0", *DISTIL[:2], "TEACHER_MODEL=%STUDENT_MODEL"), "and ALPHA 1.0"),
        ((*OISD, "inner_layer.InnerLayerLoss.layer=2"), "layer is 2: choose from 1 to 1"),
        ((*OISD, "t5.T5Config.num_decoder_layers=1"), "two decoder layers or more"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(settings, message, capfd):
    assert message in fails(capfd, "unused", *settings, "DRY_RUN=True")


@pytest.mark.parametrize(
    "setting, message",
    [
        ("inner_layer.InnerLayerLoss.layer=0", "layer is 0: use 1 or more"),
        ("inner_layer.InnerLayerLoss.beta=1.0", "beta is 1.0: use less than 1"),
        ("inner_layer.InnerLayerLoss.layers=1", "layers"),
        ("AUXILIARY_LOSS='oisd'", "use @inner_layer.InnerLayerLoss()"),
        ("AUXILIARY_LOSS=@inner_layer.InnerLayerLoss", "InnerLayerLoss"),
    ],
)
def test_a_wrong_value_is_a_mistake_of_the_command(setting, message, capfd):
    assert message in fails(capfd, "unused", *OISD, setting, code=2)


@pytest.mark.slow
def test_a_run_continues_bit_for_bit(tmp_path, no_evaluations):
    rows, _, _ = train_whole_and_in_parts(tmp_path, *OISD, "LEARNING_RATE=0.03")
    names = ("inner_divergence", "signed_inner_divergence", "attention_divergence")
    first = {name: rows[0][f"train/{name}"] for name in names}
    assert 0 < first["inner_divergence"] < 0.6932 and 0 < first["attention_divergence"] < 0.6932
