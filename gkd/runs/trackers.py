"""Experiment trackers beside TensorBoard: Trackio, Weights & Biases and MLflow, for those who ask.

A tracker never harms a run: it works in a thread of its own, and a failure is one warning. Each
value is sent once per step and name; `tracker.json` in the run directory holds the tracker's id of
the run, so that a resumed run continues there, and how far it has the metrics, so that a resumed
run sends what is missing from `metrics.jsonl`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile, one_line
from gkd.files.atomic_files import write_json
from gkd.files.json_files import Field, check_fields, check_value, read_json
from gkd.parallel import processes
from gkd.runs.flat_settings import parsed_bindings
from gkd.runs.provenance import provenance
from gkd.runs.run_directory import RunDirectory, current_bindings

TRACKER_FILE = "tracker.json"
PROJECT = "gkd"  # unless the tracker's own environment variable names another
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
_SAVE_SECONDS = 2.0  # between two writes of the file; a tracker has a row on disk by then
_CLOSE_SECONDS = 60.0  # for the rows that are not sent at the end
_MOST_ROWS = 10_000  # that wait for a tracker
_MOST_TRIES = 3  # to send a row
_FIELDS = {
    "tracker": Field(kinds=(str,), required=True),
    "id": Field(kinds=(str,), required=True),
    "settings": Field(kinds=(str,), required=True),
    "sent": Field(kinds=(dict,), required=True),
}


@dataclasses.dataclass(frozen=True)
class About:
    """A run, as a tracker shows it.

    Attributes:
      name: name of the run: that of its directory.
      directory: path of the run directory.
      settings: the whole configuration by name: numbers, texts, flags and None.
      made_with: command line, commit, versions and devices by name.
    """

    name: str
    directory: pathlib.Path
    settings: Mapping[str, Any]
    made_with: Mapping[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """Settings and provenance."""
        return {**self.settings, **self.made_with}


class Wandb:
    """Weights & Biases, https://wandb.ai; WANDB_MODE=offline writes files for `wandb sync`."""

    keeps_at_once = False

    def __init__(self, about: About, own_id: str, known: bool) -> None:
        """Begins a run of this id, or continues it where it is known from an earlier launch."""
        import wandb

        directory = os.environ.get("WANDB_DIR", os.fspath(about.directory))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=about.name, id=own_id,
            resume="allow" if known else None, dir=directory, config=about.config,
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self.id = own_id
        offline = bool(getattr(self._run, "offline", False))  # resumes nothing, `wandb sync` does
        self.continues = known and (offline or bool(self._run.resumed))
        # Not W&B's own steps, which must grow: a resumed run may send a row that was missing.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Sends a row."""
        self._run.log({**values, "step": step})

    def close(self, outcome: str) -> None:
        """Sends what is left and ends the run."""
        if outcome == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == FINISHED else 1)


class Trackio:
    """Trackio, which keeps runs in a local database, or in a Space of the Hugging Face Hub."""

    keeps_at_once = False

    def __init__(self, about: About, own_id: str, known: bool) -> None:
        """Begins a run of this id, or continues it where it is known from an earlier launch."""
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=about.name,
            config=about.config, resume="allow" if known else "never", embed=False,
        )  # fmt: skip
        # `init` finds a run by its name, which several runs may share.
        self.id = self._run.id = own_id
        self.continues = known

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Sends a row."""
        self._run.log(dict(values), step=step)

    def close(self, outcome: str) -> None:
        """Sends what is left and ends the run."""
        self._run.finish()


class Mlflow:
    """MLflow; MLFLOW_TRACKING_URI names the server or the local store."""

    keeps_at_once = True  # a row is there when `log` returns

    def __init__(self, about: About, own_id: str, known: bool) -> None:
        """Begins a run, whose id MLflow chooses, or continues the one of this id."""
        import mlflow
        from mlflow import entities

        self._entities, self._client = entities, mlflow.MlflowClient()
        self.id, self.continues = own_id, known and self._resumes(own_id)
        if self.continues:
            return
        tags = {
            "mlflow.runName": about.name,
        }
        if commit := about.made_with.get("git_commit"):
            tags["mlflow.source.git.commit"] = commit
        self.id = self._client.create_run(self._experiment(), tags=tags).info.run_id
        params = [
            entities.Param(_mlflow_name(name)[:250], str(value)[:6000])  # MLflow's limits
            for name, value in about.config.items()
        ]
        for begin in range(0, len(params), 100):
            self._client.log_batch(self.id, params=params[begin : begin + 100])

    def _resumes(self, own_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(own_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        return (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Sends a row."""
        now = time.time_ns() // 1_000_000
        metrics = [
            self._entities.Metric(_mlflow_name(name), float(value), now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, outcome: str) -> None:
        """Ends the run."""
        status = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}[outcome]
        self._client.set_terminated(self.id, status)


def _mlflow_name(name: str) -> str:
    """Replaces the characters that MLflow refuses in the name of a metric or a parameter."""
    return re.sub(r"[^\w\-. :/]", "_", name)


ADAPTERS: dict[str, Callable[[About, str, bool], Any]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


class Tracker:
    """Sends a run's metrics to a tracker, in a thread of its own.

    Example:
      tracker = Tracker("wandb", about)
      tracker.begin(restored_step=None, rows=[])
      tracker.log(10, {"train/loss": 0.5})
      tracker.close(FINISHED)
    """

    def __init__(self, kind: str, about: About) -> None:
        """Does nothing yet: `begin` starts the tracker.

        Args:
          kind: name of the tracker, a key of `ADAPTERS`.
          about: the run.
        """
        self._kind, self._about = kind, about
        self._path = about.directory / TRACKER_FILE
        self._queue: queue.Queue = queue.Queue(_MOST_ROWS)
        self._thread: threading.Thread | None = None
        self._warned = False
        self._sent: dict[str, int] = {}  # by name, the newest step
        self._kept: dict[str, int] = {}  # of these, what a kill cannot lose
        self._saved = -math.inf
        self._outcome = FAILED

    def begin(self, restored_step: int | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """Starts the tracker, and sends the rows that it does not have yet.

        Args:
          restored_step: the step that the run continues from; None for a fresh start.
          rows: the run's rows up to that step, as `metrics_log.read_metrics` returns them.
        """
        arguments = restored_step, [dict(row) for row in rows]
        self._thread = threading.Thread(target=self._work, args=arguments, daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Sends a row, at once or as soon as the tracker takes it.

        Args:
          step: the step after which the values were measured.
          values: numbers by name.
        """
        if self._thread is None or not self._thread.is_alive():
            return
        try:
            self._queue.put_nowait((int(step), dict(values)))
        except queue.Full:
            self._warn("it does not keep up, and does not get all rows")

    def close(self, outcome: str) -> None:
        """Waits, for a minute at most, until all rows are sent, and ends the tracker's run.

        Args:
          outcome: FINISHED, STOPPED (the run will be continued) or FAILED.
        """
        if self._thread is None:
            return
        self._outcome = outcome
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_SECONDS if self._thread.is_alive() else 0)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"it has not taken the last rows within {_CLOSE_SECONDS:g} s")

    def _work(self, restored_step: int | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """Starts the tracker, sends rows until `close`, and ends it."""
        try:
            adapter, waiting = self._start(restored_step), collections.deque()
        except ModuleNotFoundError as error:
            reason = one_line(error)
            if error.name == self._kind:
                reason = f"the package is not installed: python -m pip install {self._kind}"
            self._warn(reason)
            return
        except (Exception, SystemExit) as error:
            self._warn(f"it could not be started ({one_line(error)})")
            return
        for row in rows:
            waiting.append([row["step"], {name: row[name] for name in row if name != "step"}, 0])
        self._send(adapter, waiting)
        while (row := self._queue.get()) is not None:
            waiting.append([*row, 0])
            self._send(adapter, waiting)
        try:
            adapter.close(self._outcome)
            self._kept = self._sent
            self._save(adapter.id)
        except (Exception, SystemExit) as error:
            self._warn(f"it could not be closed ({one_line(error)})")

    def _start(self, restored_step: int | None) -> Any:
        """Begins the run, or continues the one of `tracker.json`."""
        settings = json.dumps(dict(self._about.settings), sort_keys=True)
        settings = hashlib.sha256(settings.encode()).hexdigest()
        known = self._read()
        changed = known.get("settings") != settings
        if restored_step is None and changed:
            known = {}  # another run in the directory of an earlier one
        self._settings = settings
        self._kept = self._sent = dict(known.get("sent", {}))
        own_id = known.get("id") or uuid.uuid4().hex
        self._save(own_id)  # for a launch that is killed while the tracker starts
        adapter = ADAPTERS[self._kind](self._about, own_id, bool(known))
        if not adapter.continues:
            self._sent = {}
        elif changed:  # the steps that the run repeats differ
            self._sent = {name: min(at, restored_step) for name, at in self._sent.items()}
        self._kept = dict(self._sent)
        self._save(adapter.id)
        return adapter

    def _send(self, adapter: Any, waiting: collections.deque) -> None:
        """Sends waiting rows; what fails waits for the next call, three times."""
        while waiting:
            step, values, tries = waiting[0]
            new = {name: at for name, at in values.items() if step > self._sent.get(name, -1)}
            try:
                if new:
                    adapter.log(step, new)
            except (Exception, SystemExit) as error:
                self._warn(f"step {step} could not be sent ({one_line(error)})")
                waiting[0][2] = tries + 1
                if waiting[0][2] >= _MOST_TRIES:
                    waiting.popleft()
                return
            waiting.popleft()
            self._sent |= dict.fromkeys(new, step)
            self._remember(adapter)

    def _remember(self, adapter: Any) -> None:
        """Writes from time to time how far the tracker surely has the metrics."""
        if time.monotonic() < self._saved + _SAVE_SECONDS:
            return
        if adapter.keeps_at_once:
            self._kept = self._sent
        try:
            self._save(adapter.id)
        except OSError as error:
            self._warn(one_line(error))
        self._kept = dict(self._sent)

    def _read(self) -> dict[str, Any]:
        """The file of an earlier launch with the same tracker; {} where there is none."""
        if not self._path.exists():
            return {}
        try:
            known = read_json(self._path, dict)
            check_fields(known, _FIELDS, self._path)
            for name, step in known["sent"].items():
                check_value(step, Field(kinds=(int,)), f"{self._path}: {name}")
        except (InvalidFile, OSError) as error:
            self._warn(f"a new run begins there, as its file is damaged ({one_line(error)})")
            return {}
        return known if known["tracker"] == self._kind else {}

    def _save(self, run_id: str) -> None:
        self._saved = time.monotonic()
        known = {
            "tracker": self._kind, "id": run_id, "settings": self._settings, "sent": self._kept,
        }  # fmt: skip
        write_json(self._path, known)

    def _warn(self, reason: str) -> None:
        if self._warned:
            return
        self._warned = True
        print(
            f"gkd: warning: TRACKER is {self._kind!r}: {reason}; the run goes on, its metrics are "
            "in metrics.jsonl",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def tracker_of(kind: str | None, run: RunDirectory) -> Tracker | None:
    """Returns the tracker of a run, in the primary process of its job.

    Args:
      kind: name of the tracker, or None.
      run: the open run directory.
    """
    if kind is None or not processes.is_primary_process():
        return None
    bindings = parsed_bindings(current_bindings())
    plain = (bool, int, float, str, type(None))
    settings = {
        name: value if isinstance(value, plain) else str(value) for name, value in bindings.items()
    }
    made_with = provenance(run.command_line)
    versions = {f"version.{name}": text for name, text in made_with.pop("versions").items()}
    command = " ".join(made_with.pop("command_line"))
    path = run.path.resolve()
    made_with = {"command_line": command, **made_with, **versions}
    return Tracker(kind, About(path.name, path, settings, made_with))
