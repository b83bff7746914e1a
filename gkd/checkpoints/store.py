"""Saves and restores the whole state of a run in atomic, hashed step folders."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gkd.checkpoints import arrays, folders, hashes
from gkd.errors import InvalidFile, InvalidValue, StorageError
from gkd.files import atomic_folders
from gkd.files.json_files import Field, check_fields

_LOG = logging.getLogger(__name__)
_UNFINISHED_SUFFIX = ".orbax-checkpoint-tmp"
_DAMAGED_FOLDER = "damaged"
# Steps to be deleted are first renamed into this folder: a process killed while it deletes files
# would otherwise leave half a step behind, which looks like a damaged one.
_DROPPED_FOLDER = "dropped"
_SAVE_TIMEOUT_SECONDS = 3600
_NO_STEP, _ALL_DAMAGED = -1, -2


@dataclasses.dataclass(frozen=True)
class Restored:
    """The restored state of a run.

    Attributes:
      step: the restored step.
      state: the state, with the requested structure and shardings.
      data_state: the saved state of this process's data iterator.
      log_state: measured values that had not been logged yet.
    """

    step: int
    state: Any
    data_state: bytes
    log_state: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints of one run: a folder of step folders, each complete or absent.

    A step folder holds the state, the data iterator's state, the description of the model, the
    metrics, and the hashes of all these files, written before the folder gets its final name. Only
    one store at a time may write to a folder (opening it removes unfinished saves); readers use
    `restore_params`. In a job of several processes each opens a store on the same shared folder and
    calls the same methods.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        best_mode: str = "max",
        asynchronous: bool = True,
        description: Mapping[str, Any] | None = None,
    ):
        """Opens or creates the folder, and removes unfinished saves of killed processes.

        Args:
          directory: path of the checkpoints folder, usually `<run directory>/checkpoints`.
          keep_last: number of newest steps to keep; 2 survive one damaged step.
          keep_best: number of best steps to keep in addition, if there is a `best_metric`.
          best_metric: key of the saved metrics by which steps are compared.
          best_mode: 'max' if larger is better, 'min' if smaller is.
          asynchronous: let `save` return before the files are written.
          description: description of the model as JSON, saved with every step.

        Raises:
          ValueError: a number or mode is out of range, or the path is a file.
        """
        if keep_last < 1 or keep_best < 0:
            raise InvalidValue(f"keep_last={keep_last} must be ≥ 1 and keep_best={keep_best} ≥ 0")
        if best_mode not in ("max", "min"):
            raise InvalidValue(f"best_mode={best_mode!r} must be 'max' or 'min'")
        folders.silence_orbax()
        self.directory = epath.Path(directory).resolve()
        if self.directory.exists() and not self.directory.is_dir():
            raise InvalidFile(
                f"checkpoints cannot go to {self.directory}: it is a file, not a folder"
            )
        self._best_metric, self._best_mode = best_metric, best_mode
        self._asynchronous = asynchronous
        self._saving: int | None = None
        self._description = {
            "description": json.loads(json.dumps(dict(description or {}))),
            "best_metric": best_metric,
            "best_mode": best_mode,
        }
        self._newest_intact(thorough=False)  # sets damaged steps aside before Orbax reads them
        self._orbax = ocp.CheckpointManager(
            self.directory, options=self._options(keep_last, keep_best if best_metric else 0)
        )

    def _options(self, keep_last: int, keep_best: int) -> ocp.CheckpointManagerOptions:
        policies = ocp.checkpoint_managers
        reverse = self._best_mode == "min"

        def rank(metrics: Mapping[str, float]) -> float:
            value = metrics.get(self._best_metric, math.nan)
            return value if math.isfinite(value) else (math.inf if reverse else -math.inf)

        return ocp.CheckpointManagerOptions(
            best_fn=rank,
            best_mode=self._best_mode,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep_last),
                    policies.BestN(get_metric_fn=rank, reverse=reverse, n=keep_best),
                    _InUse(self.directory),
                ]
            ),
            cleanup_tmp_directories=True,
            todelete_subdir=_DROPPED_FOLDER,
            async_options=ocp.options.AsyncOptions(
                timeout_secs=_SAVE_TIMEOUT_SECONDS, post_finalization_callback=self._write_hashes
            ),
        )

    def save(
        self,
        step: int,
        state: Any,
        data_state: bytes = b"",
        metrics: Mapping[str, float] | None = None,
        log_state: Mapping[str, Any] | None = None,
    ) -> bool:
        """Saves one step, after waiting for the previous save.

        Args:
          step: number of the step.
          state: tree of arrays, such as a TrainState; it may be donated or changed afterwards.
          data_state: state of the data iterator after the last consumed batch, equal in all
            processes.
          metrics: metrics of this step.
          log_state: measured values that have not been logged yet, as JSON.

        Returns:
          False if the step was saved before (nothing is written then), else True.

        Raises:
          OSError: the previous save failed.
        """
        self.wait()
        if step in self.all_steps():
            return False
        self._saving = step
        try:
            self._orbax.save(
                step,
                args=ocp.args.Composite(
                    **{
                        folders.STATE_ITEM: ocp.args.StandardSave(state),
                        folders.DATA_ITEM: ocp.args.JsonSave(
                            {
                                "0": base64.b64encode(data_state).decode(),
                                "log": dict(log_state or {}),
                            }
                        ),
                        folders.DESCRIPTION_ITEM: ocp.args.JsonSave(self._description),
                    }
                ),
                # Never None: the policy would keep a step without metrics forever.
                metrics={name: float(value) for name, value in (metrics or {}).items()},
                force=True,
            )
        except Exception as error:
            if atomic_folders.storage_reason(error) is None:
                raise
            raise self._save_failed(error) from error
        if not self._asynchronous:
            self.wait()
        return True

    def _write_hashes(self) -> None:
        """Writes the hashes; called by Orbax in the first process before the final rename."""
        unfinished = self.directory / f"{self._saving}{_UNFINISHED_SUFFIX}"
        if not unfinished.exists():  # storage without renaming: Orbax marks the folder final later
            unfinished = self.directory / str(self._saving)
        hashes.write_hashes(unfinished)

    def restore(self, abstract_state: Any) -> Restored | None:
        """Restores the newest intact step.

        A damaged step is reported in one line and moved to `damaged/`, and the step before it is
        used. Layers that were saved stacked and are wanted apart, or the other way round, are
        converted.

        Args:
          abstract_state: tree like the saved one, of arrays or `jax.ShapeDtypeStruct`s with the
            shardings to restore onto, which may differ from those of the save.

        Returns:
          The restored step, or None if nothing was ever saved.

        Raises:
          ValueError: no saved step is intact, or its tensors differ from `abstract_state`.
        """
        self.wait()
        step = self._newest_intact(thorough=True)
        if step == _ALL_DAMAGED:
            raise InvalidFile(
                f"no intact checkpoint is left in {self.directory}; the damaged ones are under "
                f"{_DAMAGED_FOLDER}/: restore one from a copy, or train in a new folder"
            )
        if step == _NO_STEP:
            return None
        self._orbax.reload()
        folder = self.directory / str(step)
        saved = arrays.read_saved_shapes(folder)
        differences = arrays.describe_differences(saved, abstract_state, compare_types=True)
        if differences:
            state = arrays.read_restacked(folder, saved, abstract_state)
            if state is None:
                raise InvalidFile(f"checkpoint {folder} does not fit this run: {differences}")
        else:
            state = arrays.read_arrays(folder, abstract_state)
        return Restored(step, state, *_saved_data(folder))

    def _newest_intact(self, thorough: bool) -> int:
        """Sets damaged steps aside; returns the newest intact one, equal in all processes.

        Args:
          thorough: read every byte, down to the first intact step; otherwise check sizes only.
        """
        newest = _NO_STEP
        if jax.process_index() == 0:
            damages = {}
            for step in reversed(folders.step_numbers(self.directory)):
                damage = hashes.find_damage(self.directory / str(step), thorough)
                if damage is not None:
                    damages[step] = damage
                elif newest == _NO_STEP:
                    newest = step
                if newest != _NO_STEP and thorough:
                    break
            for step, damage in damages.items():
                self._set_aside(step, damage, newest)
            if newest == _NO_STEP and (self.directory / _DAMAGED_FOLDER).exists():
                newest = _ALL_DAMAGED
        return _from_first_process(newest)

    def _set_aside(self, step: int, damage: str, newest: int) -> None:
        """Renames a damaged step folder, so that Orbax ignores it, and reports it."""
        folder = self.directory / str(step)
        (self.directory / _DAMAGED_FOLDER).mkdir(parents=True, exist_ok=True)
        number = 1
        while (aside := self.directory / _DAMAGED_FOLDER / f"{step}-{number}").exists():
            number += 1
        folder.rename(aside)
        instead = (
            "no intact step is left" if newest == _NO_STEP else f"step {newest} is used instead"
        )
        if newest > step:
            instead = f"the newest step is {newest}"
        _LOG.warning(
            "checkpoint %s is damaged (%s): set aside as %s; %s", folder, damage, aside, instead
        )

    def all_steps(self) -> list[int]:
        """Returns the completely saved steps, ascending."""
        return folders.step_numbers(self.directory)

    def latest_step(self) -> int | None:
        """Returns the newest completely saved step."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the saved step with the best `best_metric`; None if there is none."""
        if self._best_metric is None:
            return None
        return folders.find_best_step(self.directory, self._best_metric, self._best_mode)

    def wait(self) -> None:
        """Waits until the last save is on disk under its final name and old steps are deleted.

        Raises:
          OSError: the save failed; older steps are unchanged.
        """
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise self._save_failed(error) from error
        self._delete_dropped()

    def _save_failed(self, error: Exception) -> StorageError:
        reason = atomic_folders.storage_reason(error)
        reason = f"{reason}: put that right, and the same command continues" if reason else error
        return StorageError(f"saving step {self._saving} in {self.directory} failed: {reason}")

    def _delete_dropped(self) -> None:
        if jax.process_index() == 0:
            (self.directory / _DROPPED_FOLDER).rmtree(missing_ok=True)

    def close(self) -> None:
        """Waits for the last save and ends the store's threads.

        Raises:
          OSError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._orbax.close()


@dataclasses.dataclass
class _InUse(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the steps that other runs read, see `folders.mark_in_use`."""

    directory: epath.Path

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Returns whether each checkpoint is preserved."""
        kept = folders.steps_in_use(self.directory)
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _from_first_process(value: int) -> int:
    """Returns the value of the first process in every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _saved_data(folder: epath.Path) -> tuple[bytes, dict[str, Any]]:
    """Reads the data iterator's state, for any number of processes, and values not logged yet."""
    saved = folders.read_item(folder, folders.DATA_ITEM)
    fields = {"0": Field(kinds=(str,), required=True), "log": Field(kinds=(dict,))}
    check_fields(saved, fields, f"{folder}: {folders.DATA_ITEM}")
    try:
        return base64.b64decode(saved["0"], validate=True), saved.get("log", {})
    except ValueError as error:
        raise InvalidFile(f"{folder}: the data position is damaged: {error}") from error
