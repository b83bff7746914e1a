"""For the tests of sweeps: a small grid, and a stand-in for the commands of its cells."""

import pathlib
import sys

import pytest

from gkd.cli import command_line
from gkd.sweep import cells
from tests.paths import TINY

SWEEP = f"""\
from __gin__ import dynamic_registration
include 'configs/sweeps/common.gin'
from gkd.sweep import sweep
sweep.sweep.directory = 'out'
sweep.sweep.gin_files = ['{TINY}']
sweep.sweep.axes = {{
    'method': {{
        'sft': ['configs/methods/sft.gin'],
        'jsd_0.1': ['configs/methods/gkd.gin', 'DIVERGENCE=@divergences.generalized_jsd',
                    'BETA=0.1', "TEACHER='it is a teacher'"],
    }},
    'seed': {{'0': ['SEED=0'], '1': ['SEED=1', 'TRAIN_STEPS=30']}},
}}
"""

# Stands in for `python -m gkd train …`: notes its arguments, then does what its cell is to do.
STAND_IN = f"""\
#!{sys.executable}
import json, os, pathlib, signal, sys, time
argument = ("--gin.MODEL_DIR=", "--output=")
path = next(a for a in sys.argv if a.startswith(argument)).partition("=")[2]
output = [a.partition("=")[2] for a in sys.argv if a.startswith("--gin.evaluate.evaluate.output=")]
place = pathlib.Path(path.strip("'"))
if "infer" in sys.argv:
    place.parent.mkdir(exist_ok=True)
else:
    place.mkdir(parents=True, exist_ok=True)
with open("launches.txt", "a") as file:
    file.write((output or [path])[0] + "\\n")
if os.path.exists("fail") and str(place) in open("fail").read():
    print("it fails")
    sys.exit(1)
if os.path.exists("nothing"):
    sys.exit()
if os.path.exists("crash") and str(place) in open("crash").read():
    os.kill(os.getpid(), signal.SIGKILL)
while os.path.exists("together"):
    if len(open("launches.txt").readlines()) >= int(open("together").read()):
        break
    time.sleep(0.02)
if os.path.exists("wait"):
    def stop(*_):
        pathlib.Path("saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    pathlib.Path("started").touch()
    time.sleep(60)
if output:
    metrics = {{name: {{"greedy": {{"exact_match": value}}, "beam_4": {{"exact_match": 8.0}}}}
               for name, value in (("student", 7.0), ("teacher", 9.0))}}
    pathlib.Path(output[0].strip("'")).write_text(json.dumps({{"metrics": metrics}}))
    sys.exit()
if "infer" in sys.argv:
    place.touch()
    launch = {{"command_line": sys.argv[2:]}}
    pathlib.Path(path + ".settings.json").write_text(json.dumps({{"launches": [launch]}}))
    sys.exit()
steps = 30 if "--gin.TRAIN_STEPS=30" in sys.argv else 40
summary = {{"steps": steps, "seconds_per_step": 0.5, "evaluation": {{"exact_match": len(path)}}}}
(place / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Function of overrides to the exit code of `sweep` on its SWEEP, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.gin").write_text(SWEEP)
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(cells.sys, "executable", str(stand_in))

    def run(*overrides):
        options = [f"--gin.{text}" for text in overrides]
        return command_line.main(["sweep", "--gin_file=sweep.gin", *options])

    return run


def launches():
    """The MODEL_DIRs of the processes started so far."""
    path = pathlib.Path("launches.txt")
    return [line.strip("'") for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def rows_of(printed):
    """The rows of a status table, each as its words."""
    lines = [line.split() for line in printed.splitlines()]
    return [words for words in lines if words and words[0][0].isalnum() and words[0] != "cell"]
