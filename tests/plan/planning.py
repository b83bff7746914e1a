"""Plans of a small run, and step programs traced from it."""

import jax

from gkd.cli import command_line
from gkd.plan import programs as plan_programs
from tests.paths import TINY
from tests.step_programs import program_of

DISTIL = (
    "DIVERGENCE=@divergences.generalized_jsd", "BETA=0.1", "TEACHER_MODEL=%STUDENT_MODEL",
)  # fmt: skip


def traced(*overrides, devices=None):
    return program_of(*overrides, devices=devices)


def plan(capsys, *options, code=0):
    """The printed lines of a plan, or the error's."""
    jax.devices()  # all of them, before a plan asks for fewer
    arguments = ["plan", f"--gin_file={TINY}", "--gin.MODEL_DIR='none'", *options]
    assert command_line.main(arguments) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def run_out(planned, chip, share):
    return plan_programs.Measured(None, 20.12 * 2**30, None, {}, 1.0)
