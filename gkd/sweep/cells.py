"""The cells and prerequisites of a sweep: their commands, and the results and progress on disk."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.checkpoints import folders
from gkd.cli import command_line
from gkd.configuration import buckets
from gkd.convert.conversion_record import conversion_changes
from gkd.runs import setting_changes
from gkd.runs.lease import run_prefix
from gkd.runs.metrics_log import METRICS_FILE
from gkd.runs.run_directory import LAUNCHES_FILE

_LAUNCH_NAME_LENGTH = 32  # xpk takes 40 characters: a prefix has room
_TAIL_BYTES = 65536


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One training run of a sweep, an evaluation of such a run, or a prerequisite of several runs.

    Attributes:
      labels: the option chosen on each axis, in the order of the axes; the name of an evaluation
        comes last. A prerequisite has the labels 'prerequisite' and its name.
      arguments: the command line after `python -m gkd`.
      result: path of the file written when the cell completes; may be a gs:// path.
      settings: the values that its configuration sets, compared by `changes`.
      train_steps: the step at which a training run is complete.
      best_metric, best_mode: name of a training run's best metric; 'max' or 'min'.
      dry_run: true if the cell only traces its program and never completes.
      run: the training run that an evaluation measures.
      needs: the cells that must be complete before this one starts.
      is_prerequisite: true for a prerequisite of several runs.
    """

    labels: Mapping[str, str]
    arguments: tuple[str, ...]
    result: str
    settings: Mapping[str, Any]
    train_steps: int | None = None
    best_metric: str | None = None
    best_mode: str = "max"
    dry_run: bool = False
    run: Cell | None = None
    needs: tuple[Cell, ...] = ()
    is_prerequisite: bool = False

    @property
    def name(self) -> str:
        """The labels joined by '/'; for a run, its directory relative to the sweep's."""
        return "/".join(self.labels.values())

    @property
    def launch_name(self) -> str:
        """A name that cloud services accept: lower-case letters, digits, hyphens; 32 at most."""
        name = re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")
        name = name if name[0].isalpha() else f"c-{name}"
        if len(name) > _LAUNCH_NAME_LENGTH:
            digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
            name = f"{name[: _LAUNCH_NAME_LENGTH - 9].rstrip('-')}-{digest}"
        return name

    @property
    def path(self) -> pathlib.Path:
        """The local path of the result."""
        return pathlib.Path(buckets.local(self.result))

    @property
    def lease_prefix(self) -> pathlib.Path:
        """The path prefix of the lease on the cell's output, see `gkd.runs.lease`."""
        if self.arguments[0] == "train":
            return run_prefix(self.path.parent)
        return self.path

    def command(self, launcher: Sequence[str] = ()) -> list[str]:
        """Builds the command that runs the cell.

        Args:
          launcher: words in place of `python -m gkd`, see `sweep`; by default this Python.
        """
        words = [word.replace("{name}", self.launch_name) for word in launcher]
        return [*(words or [sys.executable, "-m", "gkd"]), *self.arguments]

    def outcome(self) -> dict[str, Any] | None:
        """Reads the result.

        Returns:
          The JSON of the result; None while the cell is incomplete, or if the run that an
          evaluation measures has been trained further since.
        """
        if self.arguments[0] == "infer":  # the file gets its final name once it is complete
            record = self._infer_record()
            size = (record.get("output") or {}).get("bytes")
            if not self.path.exists() or size not in (None, self.path.stat().st_size):
                return None
            return record
        if self.arguments[0] == "convert":  # the folder appears complete or not at all
            return {} if self.path.is_dir() and any(self.path.iterdir()) else None
        result = _read_json(self.path)
        if self.run is None:
            return result if result.get("steps") == self.train_steps else None
        if not result or self.run.outcome() is None:
            return None
        measured, trained = (path.stat().st_mtime_ns for path in (self.path, self.run.path))
        return result if measured >= trained else None

    def changes(self) -> list[str]:
        """Compares a complete cell with what its result was made with.

        Returns:
          One text per setting that differs: 'seed 0 → 3', and per checkpoint with another content.
        """
        if self.arguments[0] == "convert":
            return conversion_changes(self.path, self.settings)
        return self._setting_changes() + setting_changes.of_checkpoints(self._checkpoints_read())

    def _setting_changes(self) -> list[str]:
        if self.arguments[0] == "infer":
            launches = self._infer_record().get("launches") or [{}]
            words = launches[-1].get("command_line", ["gkd", *self.arguments])[1:]
            before = command_line.parse_arguments(words).arguments
            return setting_changes.of_arguments(before, self.settings)
        record = _read_json(self.path) if self.run else self._launches_of_result()[-1]
        return setting_changes.of_bindings(record.get("bindings"), self.settings, self.arguments[0])

    def progress(self) -> tuple[int | None, int | None, float | None]:
        """Reads a cell's progress.

        Returns:
          The last logged step, the number of starts, the best metric so far; None where unknown.
        """
        if self.arguments[0] == "infer":
            return None, len(self._infer_record().get("launches", [])) or None, None
        if self.run is not None or self.arguments[0] == "convert":
            return None, None, None
        directory = self.path.parent
        rows = _tail_rows(directory / METRICS_FILE)
        checkpoints = directory / folders.CHECKPOINTS_FOLDER
        best = None
        if self.best_metric is not None:
            step = folders.find_best_step(checkpoints, self.best_metric, self.best_mode)
            if step is not None:
                saved = folders.read_item(checkpoints / str(step), "metrics")
                best = saved[self.best_metric]
        return (rows[-1].get("step") if rows else None), len(self._launches()) or None, best

    def _infer_record(self) -> dict[str, Any]:
        return _read_json(pathlib.Path(f"{self.path}.settings.json"))

    def _launches(self) -> list[dict[str, Any]]:
        return _tail_rows(self.path.parent / LAUNCHES_FILE, whole=True)

    def _checkpoints_read(self) -> dict[str, tuple[str, str | None]]:
        """The checkpoints that the result was made from: by role, the name and the digest."""
        if self.arguments[0] == "infer":
            settings = self._infer_record().get("settings") or {}
            return {"MODEL": (str(settings.get("model")), settings.get("model_digest"))}
        if self.run is not None:
            facts = {role: _read_json(self.path).get(role) or {} for role in ("student", "teacher")}
            return {
                role.upper(): (str(of.get("step_folder")), of.get("digest"))
                for role, of in facts.items()
            }
        own, read = self.path.parent.resolve(), {}
        for launch in self._launches_of_result():
            names = launch.get("checkpoints") or {}
            for role, digest in (launch.get("digests") or {}).items():
                if own not in pathlib.Path(names[role]).parents:  # a resumed run reads its own step
                    read[role] = (names[role], digest)
        return read

    def _launches_of_result(self) -> list[dict[str, Any]]:
        """The launches that began before the result was written; later ones changed nothing."""
        written = datetime.datetime.fromtimestamp(self.path.stat().st_mtime, datetime.UTC)
        launches = self._launches() or [{}]
        before = [launch for launch in launches if _started(launch) <= written] or launches
        begun = [number for number, launch in enumerate(before) if not launch.get("continues_from")]
        return before[begun[-1] if begun else 0 :]  # those before were of a run that began again


def _started(launch: Mapping[str, Any]) -> datetime.datetime:
    """The start time of a launch; the year 2000 if its row lacks one."""
    try:
        started = datetime.datetime.fromisoformat(launch["started"])
    except (KeyError, TypeError, ValueError):
        started = datetime.datetime(2000, 1, 1)
    return started if started.tzinfo else started.replace(tzinfo=datetime.UTC)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one if the file is missing or truncated."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tail_rows(path: pathlib.Path, whole: bool = False) -> list[dict[str, Any]]:
    """Reads the complete rows in the last 64 KiB of a JSON Lines file, or all of its rows.

    The file is not modified: a run may be appending to it.
    """
    try:
        with path.open("rb") as file:
            if not whole:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # the first line of the tail may be truncated
            continue
    return [row for row in rows if isinstance(row, dict)]
