"""The FLOPs that a compiled step counts beside its closed form."""

from gkd.plan import programs
from gkd.program_cost.program_cost import program_cost
from tests.plan.planning import DISTIL, traced

STACKED = ("STUDENT_STACKED=True", "TEACHER_STACKED=True")
LAYERS = ("t5.T5Config.num_encoder_layers=4", "t5.T5Config.num_decoder_layers=4")


def counted_step(*overrides, devices=None):
    """(the count of the compiled on-policy step, its closed form)."""
    program = traced(*DISTIL, *LAYERS, "LAMBDA=1.0", *overrides, devices=devices)
    (planned,) = programs.step_programs(program).values()
    return program_cost(planned.lower().compile().as_text()), planned.flops(12)
