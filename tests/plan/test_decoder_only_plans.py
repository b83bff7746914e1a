"""The closed form of `plan` for decoder-only models and T5Gemma against the traced step."""

import pytest

from gkd.plan.program_report import setting
from gkd.plan.programs import step_programs
from gkd.program_cost.program_cost import program_cost
from gkd.train.model_flops import step_flops
from tests.plan.planning import DISTIL
from tests.products import products
from tests.step_programs import program_of

GEMMA = "STUDENT_MODEL=@t5gemma.T5GemmaConfig()"
GEMMA_2 = (
    GEMMA, "t5gemma.T5GemmaConfig.version=2", "wide/decoder_only.DecoderConfig.emb_dim=16",
)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        ((), None),
        ((*DISTIL, "LAMBDA=1.0", "SAMPLES=2"), 12),
        ((*DISTIL, "LAMBDA=1.0", "MICROBATCHES=2", "REMAT=True"), 12),
        ((*DISTIL, "LAMBDA=0.0", "STUDENT_STACKED=True", "TEACHER_STACKED=True"), None),
        ((*DISTIL, "LAMBDA=1.0", "INPUT_LENGTH=512", "TARGET_LENGTH=512"), 512),
        ((GEMMA,), None),
        ((GEMMA, *DISTIL, "LAMBDA=1.0", "SAMPLES=2"), 12),
        ((*GEMMA_2, *DISTIL, "LAMBDA=1.0", "SAMPLES=2"), 12),
        ((*GEMMA_2, "INPUT_LENGTH=512", "TARGET_LENGTH=512"), None),
    ],
)
def test_the_closed_form_is_what_the_traced_step_multiplies(overrides, length):
    program = program_of(*overrides, gin_file="tests/decoders/tiny.gin")
    arguments = program.state.abstract, program.teacher and program.teacher.shapes, program.batch
    counted = 2 * products(program.step.step, *arguments, loop_trips=length)
    costs = step_flops(program, length or 12, split=False)
    assert sum(costs.values()) * program.mesh.size == pytest.approx(counted, rel=0.03)


def test_a_prompt_is_prefilled_once_for_sampling_and_loss():
    """Four samples of a prompt cost three more continuations each, and no prefill."""
    arguments = []
    for samples in (1, 4):
        overrides = (*DISTIL, "LAMBDA=1.0", f"SAMPLES={samples}", "INPUT_LENGTH=256")
        program = program_of(*overrides, gin_file="tests/decoders/tiny.gin")
        inputs = program.state.abstract, program.teacher.shapes, program.batch
        arguments.append(2 * products(program.step.step, *inputs, loop_trips=12))
    one, four = arguments
    rows, source, emb, width, mlp = 16, 256, 16, 32, 32
    layer = 2 * rows * source * (2 * emb * (width + 16) + 2 * source * width + 3 * emb * mlp)
    keys = 2 * rows * source * 2 * emb * 16
    prefills = 4 * (layer + keys)  # the student's with its backward pass, the teacher's
    assert four - one < 3 * (one - prefills) * 1.02
    assert one > 1.5 * (one - prefills), "the prefill is most of the cost here"


FOUR_CHIPS = (
    GEMMA, "MODEL_PARALLELISM=4", "INPUT_LENGTH=128", "decoder_only.DecoderConfig.num_layers=1",
)  # fmt: skip


def of_key_heads(encoder, decoder):
    name = "decoder_only.DecoderConfig.num_kv_heads"
    heads = f"wide/{name}={encoder}", f"{name}={decoder}"
    return program_of(*FOUR_CHIPS, *heads, gin_file="tests/decoders/tiny.gin")


@pytest.mark.parametrize(("encoder", "decoder"), [(4, 2), (2, 4), (4, 4)])
def test_heads_of_t5gemma_are_divided_in_both_stacks_or_in_none(encoder, decoder):
    program = of_key_heads(encoder, decoder)
    queries = 4 * 8 if encoder != decoder else 8  # columns of a chip
    for side, block in (
        ("encoder", "self_attention"), ("decoder", "self_attention"),
        ("decoder", "encoder_decoder_attention"),
    ):  # fmt: skip
        kernel = program.student.shapes[side]["layers_0"][block]["query"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[1] == queries, (side, block)
    notes = setting(program)["split_by_rows"]
    assert len(notes) == (encoder != decoder)
    assert not notes or f"{decoder} and {encoder} heads do not divide" in notes[0]


def test_a_step_whose_rows_are_split_for_one_stacks_heads_costs_its_closed_form():
    (planned,) = step_programs(of_key_heads(4, 2)).values()
    counted = program_cost(planned.lower().compile().as_text()).flops
    assert planned.flops(12) == pytest.approx(counted, rel=0.03)
