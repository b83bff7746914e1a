"""Traces of the paper's programs at full size: every run file's and every sweep cell's step."""

from __future__ import annotations

import dataclasses

from gkd.cli import command_line
from gkd.cli.arguments import Command
from tests.configs import grid

# Of the published checkpoints.
PARAMETERS = {
    "small": 76_961_152,
    "base": 247_577_856,
    "large": 783_150_080,
    "xl": 2_849_757_184,
    "xxl": 11_135_332_352,
}
# One layer's trace for all of them.
STACKED = ("STUDENT_STACKED=True", "TEACHER_STACKED=True", "DRY_RUN=True", "MODEL_DIR='none'")


def programs(sweeps: bool) -> dict:
    """Commands by name, one for each program, and what it is.

    Args:
      sweeps: those of the sweeps that no run file has, instead of the run files'.
    """
    commands = {name: Command("train", (name,), ()) for name in grid.paper_runs()}
    runs = len(commands)
    names = [name for name in grid.names("sweeps", "common") if "/claims/" not in name]  # small
    for name in names if sweeps else ():
        for cell in grid.cells(name):
            if cell.run is None:
                commands[f"{name}:{cell.name}"] = grid.command_of(cell)
    found = {}
    for name, command in commands.items():
        program = grid.program(command_line.read_configuration(command))
        if program["STUDENT_MODEL"] != "None":  # the small sweeps need their runs' checkpoints
            found.setdefault(tuple(program.items()), name)
    known = list(commands)[:runs] if sweeps else ()
    return {
        name: (commands[name], dict(program))
        for program, name in found.items()
        if name not in known
    }


def of_every_kind(found: dict, facts_of) -> dict:
    """A few of the programs that have between them every fact that any of them has.

    Args:
      found: from `programs`.
      facts_of: a program's facts.
    """
    facts = {name: set(facts_of(program)) for name, (_, program) in found.items()}
    kept: dict = {}
    while missing := set().union(*facts.values()) - set().union(*(facts[name] for name in kept)):
        kept[max(facts, key=lambda name: len(facts[name] & missing))] = None
    return {name: found[name] for name in kept}


def trace(command: Command, program: dict[str, str]) -> None:
    """Traces a program's whole step; checks its models' sizes."""
    overrides = [*command.overrides, *STACKED]
    if "xxl" in program["REWARD_ARCHITECTURE"]:
        overrides.append("xxl/t5.T5Config.stacked_layers=True")
    made = command_line.configure(dataclasses.replace(command, overrides=tuple(overrides)))()
    assert "loss" in made["metrics"]
    student, teacher = program["STUDENT_MODEL"], program["TEACHER_MODEL"]
    want = {"student": PARAMETERS[size_of(student)]}
    if program["DIVERGENCE"] != "None" and program["ALPHA"] != "0.0":
        own = teacher == "%STUDENT_MODEL"
        want["teacher"] = PARAMETERS[size_of(student if own else teacher)]
    if "entailment" in program["REWARD"]:
        want["reward model"] = PARAMETERS[size_of(program["REWARD_ARCHITECTURE"])]
    assert made["parameters"] == want


def size_of(reference: str) -> str:
    """`xl` of `@xl/t5.T5Config()`."""
    return reference.removeprefix("@").partition("/")[0]
