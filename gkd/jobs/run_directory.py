"""What a run records beside its checkpoints: configuration, command line, commit, versions."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import gin

import gkd
from gkd.jobs.gin_files import REPOSITORY, Binding, Source, parse_statements
from gkd.parallel import processes

CONFIG_FILE = "config.gin"  # everything that was bound
OPERATIVE_CONFIG_FILE = "operative_config.gin"  # what the run used, defaults included
LAUNCHES_FILE = "launches.jsonl"  # one row a start, the oldest first

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "clu",
    "gin-config",
    "numpy",
    "seqio",
    "sentencepiece",
    "tensorflow",
    "tensorflow-datasets",
    "tensorflow-text",
)


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """An open run directory; as a context it records the operative configuration at the end.

    Example:
      with open_run(model_dir) as run:
          ...                              # set-up
          run.write_operative_config()     # early, in case of a kill
          ...                              # training
    """

    path: pathlib.Path
    resumed: bool  # whether a run was launched here before
    changes: tuple[str, ...]  # bindings that differ from the previous launch's

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.write_operative_config()

    def write_operative_config(self) -> None:
        """Writes the bindings and defaults that the run has used so far.

        A launch that used less than an earlier one (a finished run, started again) changes nothing.
        """
        if not processes.is_first():
            return
        path = self.path / OPERATIVE_CONFIG_FILE
        config = gin.operative_config_str()
        if path.exists() and set(config.splitlines()) <= set(path.read_text().splitlines()):
            return
        _replace(path, config)


def open_run(
    model_dir: str | os.PathLike[str], command_line: Sequence[str] | None = None
) -> RunDirectory:
    """Makes or re-opens a run directory and records this launch; the job's first process does.

    A configuration that differs from the previous launch's is allowed (training longer is the
    ordinary case) and reported in one line on stderr.

    Args:
      model_dir: the directory; made with its parents.
      command_line: what started the process; `sys.argv` when None.

    Returns:
      The open directory.

    Raises:
      NotADirectoryError: the path is a file.
    """
    path = pathlib.Path(model_dir)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"MODEL_DIR {path} is a file: choose a directory for the run")
    if not processes.is_first():
        return RunDirectory(path, path.exists(), ())
    path.mkdir(parents=True, exist_ok=True)
    previous = read_launches(path)
    config = gin.config_str()
    bindings = config_bindings(config)
    changes = tuple(changed_bindings(previous[-1]["bindings"], bindings) if previous else ())
    if changes:
        print(
            f"gkd: warning: {path} was last run with another configuration: {'; '.join(changes)}",
            file=sys.stderr,
        )
    launch = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command_line": list(sys.argv if command_line is None else command_line),
        **git_state(REPOSITORY),
        **environment(),
        "bindings": bindings,
    }
    with open(path / LAUNCHES_FILE, "ab", buffering=0) as file:
        file.write((json.dumps(launch, ensure_ascii=False) + "\n").encode("utf-8"))
    _replace(path / CONFIG_FILE, config)
    return RunDirectory(path, bool(previous), changes)


def read_launches(model_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the launches recorded in a run directory, the oldest first.

    A half-written last line (a process killed while starting) is removed from the file.

    Args:
      model_dir: the run directory.

    Returns:
      One dict a launch; none for a new directory.
    """
    path = pathlib.Path(model_dir) / LAUNCHES_FILE
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)
    return [json.loads(line) for line in content[:complete].splitlines()]


def config_bindings(config: str) -> dict[str, str]:
    """Splits a configuration into its bindings.

    Args:
      config: gin text, e.g. of `gin.config_str()`.

    Returns:
      Key to value, both as gin spells them: {"LAMBDA": "0.5"}.
    """
    source = Source("config", [])
    bindings = {}
    for statement in parse_statements(config, "config"):
        if hasattr(statement, "value"):
            binding = Binding(*statement[:4], source, 0)
            bindings[binding.key] = repr(binding.value)
    return bindings


def changed_bindings(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Lists the differences of two configurations: `LAMBDA 0.0 → 0.5`, `BETA removed (0.1)`."""
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            changes.append(f"{key} removed ({before[key]})")
        elif key not in before:
            changes.append(f"{key} added ({after[key]})")
        elif before[key] != after[key]:
            changes.append(f"{key} {before[key]} → {after[key]}")
    return changes


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


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
