"""The closed form of training adapters against the traced step's products."""

import pytest

from gkd.train.model_flops import step_flops
from tests.plan.planning import DISTIL, traced
from tests.products import products
from tests.teacher_prompts import OVERRIDES

LORA = (*DISTIL, "LORA=@lora.LoRA()")
TWO = ("t5.T5Config.num_encoder_layers=2", "t5.T5Config.num_decoder_layers=2")
ALL = "lora.LoRA.targets=['query','key','value','out','wi_0','wi_1','wo']"
OWN = ("TEACHER_MODEL=None", "TEACHER_WEIGHTS='average'", *OVERRIDES)


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (("LAMBDA=0.0",), None),
        (("LAMBDA=1.0", *TWO), 12),
        (("LAMBDA=1.0", "MICROBATCHES=2"), 12),
        (("LAMBDA=1.0", "lora.LoRA.targets=['wo','logits_dense']"), 12),
        (("LAMBDA=1.0", "lora.LoRA.targets=['decoder/layers_1/mlp/wo']", *TWO), 12),
        (("LAMBDA=1.0", "lora.LoRA.targets=['encoder/layers_1/attention/key']", *TWO), 12),
        (("LAMBDA=1.0", "STUDENT_STACKED=True", *TWO), 12),
        (("LAMBDA=1.0", "REMAT=True", ALL), 12),
        (("LAMBDA=1.0", *OWN), 12),
        (("LAMBDA=0.0", "INPUT_LENGTH=512", "lora.LoRA.targets=['decoder/layers_0/mlp/wo']"), None),
        (("LAMBDA=0.0", "INPUT_LENGTH=512", "TARGET_LENGTH=512"), None),
    ],
)
def test_the_closed_form_is_what_the_traced_step_multiplies(overrides, length):
    program = traced(*LORA, *overrides)
    arguments = (
        program.state.abstract,
        program.frozen_teacher and program.frozen_teacher.shapes,
        program.batch,
    )
    frozen = program.frozen_models("shapes")
    counted = 2 * products(program.step.step, *arguments, *frozen, loop_trips=length)
    # In a trace, sampling and every microbatch add the adapters again; a compiler does it once.
    costs = step_flops(program, length or 12, split=False)
    assert sum(costs.values()) * program.mesh.size == pytest.approx(counted, rel=0.003)
