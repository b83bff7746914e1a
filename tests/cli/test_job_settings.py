"""The settings that all processes of a job must share."""

import hashlib
import pathlib

import gkd
from gkd.cli import command_line, job_settings
from gkd.cli.arguments import Command
from tests.paths import TINY


def test_the_digest_is_that_of_paths_and_contents():
    root = pathlib.Path(gkd.__file__).parent
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*.py"))
    whole = hashlib.sha256()
    for name in sorted(names, key=lambda name: root / name):
        content = hashlib.sha256((root / name).read_bytes()).digest()
        whole.update(name.encode() + b"\0" + content)
    assert job_settings.code_digest() == whole.hexdigest()[:12]


def test_another_setting_or_option_is_another_fact():
    def facts(*overrides, **options):
        command = Command("train", (TINY,), ("MODEL_DIR='none'", *overrides))
        reader = command_line.read_configuration(command)
        return job_settings.facts("train", options, reader)

    same = facts()
    assert same == facts() and same["verb"] == "train" and "jax" in same
    changed = facts("SEED=3")
    assert {name for name in changed if changed[name] != same.get(name)} == {"SEED"}
    assert facts(price=2.0)["verb"] == "train price=2.0"
