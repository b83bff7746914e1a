"""The closed form of training adapters against the traced step's products."""

import pytest

from gkd.train.model_flops import step_flops
from tests.plan.planning import DISTIL, traced
from tests.products import products
from tests.step_programs import program_of
from tests.teacher_prompts import OVERRIDES

LORA = (*DISTIL, "LORA=@lora.LoRA()")
TWO = ("t5.T5Config.num_encoder_layers=2", "t5.T5Config.num_decoder_layers=2")
ALL = "lora.LoRA.targets=['query','key','value','out','wi_0','wi_1','wo']"
ENCODER = "lora.LoRA.targets=['attention/query']"
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
        (("LAMBDA=0.0", "STUDENT_STACKED=True", ENCODER, *TWO), None),
        (("LAMBDA=1.0", "REMAT=True", ALL), 12),
        (("LAMBDA=1.0", *OWN), 12),
        (("LAMBDA=0.0", "INPUT_LENGTH=512", "lora.LoRA.targets=['decoder/layers_0/mlp/wo']"), None),
        (("LAMBDA=0.0", "INPUT_LENGTH=512", "TARGET_LENGTH=512"), None),
    ],
)
def test_the_closed_form_is_what_the_traced_step_multiplies(overrides, length):
    check_closed_form(traced(*LORA, *overrides), length)


GEMMA = "STUDENT_MODEL=@t5gemma.T5GemmaConfig()"
GEMMA_2 = (
    GEMMA, "t5gemma.T5GemmaConfig.version=2", "wide/decoder_only.DecoderConfig.emb_dim=16",
)  # fmt: skip
STACKED = ("STUDENT_STACKED=True", "TEACHER_STACKED=True")


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (("LAMBDA=0.0",), None),
        (("LAMBDA=0.0", ALL, "INPUT_LENGTH=256"), None),
        (("LAMBDA=1.0", "SAMPLES=2", "lora.LoRA.targets=['value']"), 12),
        (("LAMBDA=0.0", "lora.LoRA.targets=['decoder/layers_1/self_attention/key']"), None),
        (("LAMBDA=0.0", "lora.LoRA.targets=['decoder/layers_1/mlp/wo']"), None),
        (("LAMBDA=0.0", "INPUT_LENGTH=512", "TARGET_LENGTH=512"), None),
        (("LAMBDA=0.0", *STACKED), None),
        (("LAMBDA=0.0", "lora.LoRA.targets=['key']", *STACKED), None),
        ((GEMMA, "LAMBDA=1.0"), 12),
        ((GEMMA, "LAMBDA=0.0", ALL, "wide/decoder_only.DecoderConfig.num_kv_heads=4"), None),
        ((GEMMA, "LAMBDA=0.0", "lora.LoRA.targets=['encoder/layers_1/mlp/wo']"), None),
        ((GEMMA, "LAMBDA=0.0", "INPUT_LENGTH=512", "TARGET_LENGTH=512", *STACKED), None),
        ((*GEMMA_2, ALL, "LAMBDA=1.0", "SAMPLES=2", "INPUT_LENGTH=256"), 12),
        ((*GEMMA_2, "LAMBDA=0.0", "lora.LoRA.targets=['decoder/layers_1/mlp/wo']"), None),
        ((*GEMMA_2, "LAMBDA=0.0", "lora.LoRA.targets=['self_attention/key']"), None),
    ],
)
def test_of_decoder_only_models_and_t5gemma_too(overrides, length):
    program = program_of(*LORA, *overrides, gin_file="tests/decoders/tiny.gin")
    check_closed_form(program, length)


def check_closed_form(program, length):
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
