"""The installed command and `python -m gkd` are one function, which runs under the supervisor."""

import importlib
import tomllib

from gkd.cli import supervisor
from tests.paths import REPOSITORY


def test_the_installed_command_runs_under_the_supervisor(monkeypatch):
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["gkd"].partition(":")
    monkeypatch.setattr(supervisor, "main", lambda: 7)
    assert getattr(importlib.import_module(module), name)() == 7
