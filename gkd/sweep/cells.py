"""A sweep's cells and preparations: their commands, and what they have written so far."""

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
from gkd.runs import setting_changes
from gkd.runs.lease import run_prefix
from gkd.runs.metrics_log import METRICS_FILE
from gkd.runs.run_directory import LAUNCHES_FILE

_LAUNCH_NAME_LENGTH = 32  # xpk takes 40 characters: a prefix has room
_TAIL_BYTES = 65536


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep, an evaluation of it, or what several runs need and is made first.

    Attributes:
      labels: the option of each axis, in the axes' order; an evaluation's own comes last. Of a
        preparation, 'first' and its name.
      arguments: what follows `python -m gkd`.
      result: the file that it writes at its end; also a gs:// path.
      settings: what its configuration sets, for `changes`.
      train_steps: of a run, the step at which it is complete.
      best_metric, best_mode: of a run, what its configuration names.
      dry_run: it traces only, and completes nothing.
      run: of an evaluation, the run that it measures.
      needs: what must be complete before it begins.
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

    @property
    def name(self) -> str:
        """The options joined; a run's is its directory within the sweep's."""
        return "/".join(self.labels.values())

    @property
    def is_first(self) -> bool:
        """Whether it is a preparation."""
        return "first" in self.labels

    @property
    def launch_name(self) -> str:
        """The name as clouds allow it: short, small letters, digits and hyphens, a letter first."""
        name = re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")
        name = name if name[0].isalpha() else f"c-{name}"
        if len(name) > _LAUNCH_NAME_LENGTH:
            digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
            name = f"{name[: _LAUNCH_NAME_LENGTH - 9].rstrip('-')}-{digest}"
        return name

    @property
    def path(self) -> pathlib.Path:
        """Where the result is read."""
        return pathlib.Path(buckets.local(self.result))

    @property
    def lease_prefix(self) -> pathlib.Path:
        """Where the lease on what it writes lies, see `gkd.runs.lease`."""
        if self.arguments[0] == "train":
            return run_prefix(self.path.parent)
        return self.path

    def command(self, launcher: Sequence[str] = ()) -> list[str]:
        """The command, with this process's own Python or a launcher, see `sweep`."""
        words = [word.replace("{name}", self.launch_name) for word in launcher]
        return [*(words or [sys.executable, "-m", "gkd"]), *self.arguments]

    def outcome(self) -> dict[str, Any] | None:
        """What it wrote; None while it is not complete, or its run has been trained since."""
        if self.arguments[0] == "infer":  # the file has its name when it is complete
            record = self._infer_record()
            known = (record.get("output") or {}).get("bytes")
            if not self.path.exists() or known not in (None, self.path.stat().st_size):
                return None
            return record
        found = _read_json(self.path)
        if self.run is None:
            return found if found.get("steps") == self.train_steps else None
        if not found or self.run.outcome() is None:
            return None
        measured, trained = (path.stat().st_mtime_ns for path in (self.path, self.run.path))
        return found if measured >= trained else None

    def changes(self) -> list[str]:
        """In what the configuration differs from the one that made a complete cell's result."""
        if self.arguments[0] == "infer":
            launches = self._infer_record().get("launches") or [{}]
            words = launches[-1].get("command_line", ["gkd", *self.arguments])[1:]
            before = command_line.parse_arguments(words).arguments
            return setting_changes.of_arguments(before, self.settings)
        record = _read_json(self.path) if self.run else self._launch_of_result()
        return setting_changes.of_bindings(record.get("bindings"), self.settings, self.arguments[0])

    def progress(self) -> tuple[int | None, int | None, float | None]:
        """How far it is: the last logged step, how often it was started, the best metric so far.

        Each is None where it is not known.
        """
        if self.arguments[0] == "infer":
            return None, len(self._infer_record().get("launches", [])) or None, None
        if self.run is not None:
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

    def _launch_of_result(self) -> dict[str, Any]:
        """The run's last launch that can have made the result: a later one found it complete."""
        written = datetime.datetime.fromtimestamp(self.path.stat().st_mtime, datetime.UTC)
        launches = self._launches() or [{}]
        before = [launch for launch in launches if _started(launch) <= written]
        return (before or launches)[-1]


def _started(launch: Mapping[str, Any]) -> datetime.datetime:
    """When a launch began; long ago where its row does not say."""
    try:
        started = datetime.datetime.fromisoformat(launch["started"])
    except (KeyError, TypeError, ValueError):
        started = datetime.datetime(2000, 1, 1)
    return started if started.tzinfo else started.replace(tzinfo=datetime.UTC)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none, or it is cut off."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tail_rows(path: pathlib.Path, whole: bool = False) -> list[dict[str, Any]]:
    """The complete rows at a file's end, or all; nothing is changed, as a run may be writing."""
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
        except ValueError:  # the first, where the tail begins
            continue
    return [row for row in rows if isinstance(row, dict)]
