"""A tiny verb with its own modules and gin files, so that jobs are tested without training."""

import importlib
import itertools
import sys
import textwrap

import gin
import pytest

import gkd.train
from gkd.cli import arguments, command_line

_COUNTER = itertools.count()  # gin remembers functions for ever: each test has its own module

JOB = """
import dataclasses

import numpy

from gkd.errors import InvalidValue
from gkd.runs.signals import Stopped

CALLS = []

@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    depth: int = 2

def forward(x=1):
    return "forward"

def reverse(x=1):
    return "reverse"

def run(steps, model_dir="", config=None, divergence=None, mixing=0.0):
    CALLS.append(dict(steps=steps, config=config, mixing=mixing, model_dir=model_dir,
                      divergence=divergence and divergence()))
    if steps == 13:
        raise InvalidValue("13 steps:\\nchoose another number")
    if steps == 14:
        raise KeyError("a mistake in the code")
    if steps == 15:
        raise Stopped("SIGTERM at step 9; saved")
    if steps == 16:
        numpy.zeros(2).reshape(3)
    if steps == 17:
        open("/no/such/checkpoint")
    if steps == 19:
        raise ValueError("a mistake in the code that GKD itself raises")
    if steps == 18:
        raise KeyboardInterrupt
"""


class FakeVerb:
    """Writes gin files into a folder and runs `gkd fake` on them in this process."""

    def __init__(self, folder, module, capsys):
        self.folder, self.capsys = folder, capsys
        self.module = module
        self.name = module.__name__.rpartition(".")[2]
        self.header = (
            f"from __gin__ import dynamic_registration\nfrom gkd.train import {self.name} as job\n"
        )

    def write(self, name, text, header=True):
        """Writes a gin file (with the imports on top unless told otherwise); returns its path."""
        path = self.folder / name
        path.write_text((self.header if header else "") + textwrap.dedent(text))
        return path

    def __call__(self, *arguments):
        """Runs the verb; returns exit code and stderr."""
        arguments = [f"--gin_file={a}" if hasattr(a, "stem") else a for a in arguments]
        code = command_line.main(["fake", *arguments])
        return code, self.capsys.readouterr().err

    @property
    def calls(self):
        return self.module.CALLS


@pytest.fixture
def fake_verb(tmp_path, monkeypatch, capsys):
    """A FakeVerb; `fake.run` is called like a real verb."""
    name = f"fake_job_{next(_COUNTER)}"
    (tmp_path / f"{name}.py").write_text(JOB)
    monkeypatch.setattr(gkd.train, "__path__", [*gkd.train.__path__, str(tmp_path)])
    module = importlib.import_module(f"gkd.train.{name}")
    verb = arguments.Verb(module.__name__, "run", "a verb for tests")
    monkeypatch.setitem(command_line.VERBS, "fake", verb)
    monkeypatch.delenv("GKD_TRACEBACK", raising=False)
    gin.enter_interactive_mode()  # every test registers another `job.run`
    yield FakeVerb(tmp_path, module, capsys)
    gin.exit_interactive_mode()
    gin.clear_config()
    del sys.modules[module.__name__]
    delattr(gkd.train, name)


RUN = """\
job.run.steps = %STEPS
job.run.config = @job.Config()
job.run.mixing = %LAMBDA
job.run.divergence = %DIVERGENCE
job.Config.width = 3
STEPS = 5
LAMBDA = 0.25
DIVERGENCE = @job.forward
"""
