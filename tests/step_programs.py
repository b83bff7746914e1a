"""Builds the step program that gin files and overrides configure."""

from gkd.cli import command_line
from gkd.cli.arguments import Command
from gkd.train.build import build_step_program
from tests.paths import TINY


def program_of(*overrides, gin_file=TINY, devices=None, read=False):
    """The `StepProgram` of `train` with these overrides, NAME=VALUE, on these devices (or all).

    `read` reads the parameters of a teacher, or makes them.
    """
    command = Command("train", (str(gin_file),), ("MODEL_DIR='none'", *overrides))
    experiment = command_line.configured_experiment(command)
    return build_step_program(experiment, devices=devices, from_shapes=not read)
