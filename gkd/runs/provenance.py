"""The provenance of a result: command line, commit of the code, package versions, devices."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import gkd
from gkd.configuration.gin_files import REPOSITORY

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "gin-config",
    "numpy",
    "seqio",
    "sentencepiece",
    "tensorflow",
    "tensorflow-datasets",
    "tensorflow-text",
)


def provenance(command_line: Sequence[str] | None = None) -> dict[str, Any]:
    """Collects what a result was made with.

    Every verb that writes results records it: a launch of `train`, the outputs of `infer`, the
    evaluations, the plans.

    Args:
      command_line: command line of the process; by default `sys.argv`.

    Returns:
      `command_line`, and the entries of `git_state` and `environment`.
    """
    return {
        "command_line": list(sys.argv if command_line is None else command_line),
        **git_state(REPOSITORY),
        **environment(),
    }


def git_state(folder: pathlib.Path) -> dict[str, Any]:
    """The commit of the code, and whether tracked files differ from it.

    Args:
      folder: the root of the checkout.

    Returns:
      {"git_commit": str, "git_dirty": bool}; where there is no checkout, the commit that `git
      archive` wrote into its copy (launch/tpu_vm.sh), and both None of any other copy.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != folder.resolve():
            return _archived_commit(folder)
        commit = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return _archived_commit(folder)
    return {"git_commit": commit, "git_dirty": dirty}


def _archived_commit(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / "gkd" / "COMMIT"
    commit = file.read_text(encoding="utf-8").strip() if file.exists() else "$Format:%H$"
    known = not commit.startswith("$")
    return {"git_commit": commit if known else None, "git_dirty": False if known else None}


def environment() -> dict[str, Any]:
    """Python, devices and package versions; nothing that names the machine or its user."""
    import jax

    versions = {"gkd": gkd.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} {devices[0].device_kind} ({devices[0].platform})",
        "processes": jax.process_count(),
        "versions": versions,
    }
