"""The processes of a comparison: which implementations are there, and one worker for each."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
OURS = "gkd"
# Packages that T5X imports and no index has; what is measured does not call them.
_ABSENT = ROOT / "benchmarks" / "absent_packages"


class Worker:
    """The process of a participant."""

    def __init__(
        self, name: str, module: str, python: str, environment: dict[str, str], log: pathlib.Path
    ):
        """Starts a module of `benchmarks.workers`; its output besides answers goes to `log`."""
        self._log = log.open("a")
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.workers.{module}"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self.name = name

    def run(self, **command) -> dict:
        """Sends a command, and returns its answer."""
        print(json.dumps(command), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.name} worker ended: see {self._log.name}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say where the peers are, and where results go."""
    parser.add_argument(
        "--peer_python", default=sys.executable, help="has torch, transformers, trl"
    )
    parser.add_argument("--t5x", action="append", help="a folder to import t5x from; repeatable")
    parser.add_argument("--directory", default="runs/benchmarks")


def available(
    needs: Mapping[str, str], wanted: Iterable[str], given: argparse.Namespace
) -> tuple[dict[str, str], dict[str, str]]:
    """Finds the Python of every implementation that can be imported, and prints which cannot.

    Args:
      needs: the modules that each participant imports; those that need gkd run in this Python,
        the others in that of `--peer_python`.
      wanted: names of participants.
      given: the options of `add_arguments`.

    Returns:
      The Python of each participant, and the environment of all.
    """
    environment = dict(os.environ, USE_TF="0", TF_CPP_MIN_LOG_LEVEL="3", JAX_PLATFORMS="cpu")
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *(given.t5x or []), str(_ABSENT)])
    pythons = {}
    for name in wanted:
        python = sys.executable if needs[name] == OURS else given.peer_python
        found = subprocess.run(
            [python, "-c", f"import {needs[name]}"], env=environment, capture_output=True, text=True
        )
        if found.returncode:
            reason = found.stderr.strip().splitlines()[-1]
            print(f"{name} does not take part: {reason}")
        else:
            pythons[name] = python
    if OURS not in pythons:
        raise SystemExit("GKD itself cannot be imported: install requirements.txt")
    return pythons, environment
