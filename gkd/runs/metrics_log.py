"""Writes and reads the metrics and sample tables of a run: exact JSON Lines, and TensorBoard.

`metrics.jsonl` has one row per write: {"step": 10, "train/loss": 0.6931471805599453}. Numbers have
all their digits, so that two runs can be compared bit for bit; NaN and the infinities, which JSON
lacks, are the strings "NaN", "Infinity" and "-Infinity", which `float()` parses. Rows hold no
times, which would differ between equal runs. `samples.jsonl` holds the tables.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile, StorageError
from gkd.files.atomic_files import append_lines, remove_unfinished_line, replace_file
from gkd.files.atomic_folders import storage_reason
from gkd.files.json_files import Field, check_value, parse_json, shown
from gkd.metrics.descriptions import description_of
from gkd.parallel import processes
from gkd.runs import trackers
from gkd.runs.signals import Stopped
from gkd.runs.tables import markdown_table

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Appends to the metrics of a run directory, in the primary process of a job.

    A row is on disk when `write` returns: a killed process loses none of them, and leaves at most
    one half-written row, which the next opening removes. Write the rows of a step before saving its
    checkpoint, so that a resume from there has all of them.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        tensorboard: bool = True,
        expected: Mapping[str, Sequence[int]] | None = None,
        tracker: trackers.Tracker | None = None,
    ) -> None:
        """Opens or creates the files.

        Args:
          directory: path of the run directory.
          tensorboard: write TensorBoard events too (imports TensorFlow).
          expected: the `position` that was saved with the restored step; rows that have been
            removed or changed since are reported in one line. None for a fresh start.
          tracker: gets all numbers too, from `truncate_after` on.

        Raises:
          ValueError: a folder exists in place of a file, or a file in place of a folder.
        """
        self._directory = pathlib.Path(directory)
        self._writes = processes.is_primary_process()
        self._with_tensorboard = tensorboard
        self._writer: Any = None  # created by the first write, after `truncate_after`
        self._expected, self._tracker = expected, tracker
        self._position: dict[str, list[int]] = {}
        if not self._writes:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        events = self._directory / TENSORBOARD_FOLDER
        if tensorboard and events.exists() and not events.is_dir():
            raise InvalidFile(f"{events} is a file: move it away, TensorBoard's events go there")
        for name in (METRICS_FILE, SAMPLES_FILE):
            if (self._directory / name).is_dir():
                raise InvalidFile(f"{self._directory / name} is a folder: move it away")
            remove_unfinished_line(self._directory / name)
            self._position[name] = _position_of(self._directory / name)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # else the first error is more informative
                raise
        finally:
            if self._tracker is not None:
                stopped = trackers.STOPPED if isinstance(error, Stopped) else trackers.FAILED
                self._tracker.close(trackers.FINISHED if error is None else stopped)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          step: the step after which the values were measured.
          values: numbers (Python's, NumPy's or 0-d arrays) by names such as "train/loss".
        """
        if not self._writes:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        row = {"step": int(step)} | {name: _to_json(value) for name, value in numbers.items()}
        self._append(METRICS_FILE, row)
        self._write_numbers(step, numbers)

    def write_events(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes numbers to no file of JSON, such as times, which differ between equal runs.

        Args:
          step: the step after which the values were measured.
          values: numbers by name.
        """
        if self._writes:
            self._write_numbers(step, {name: _number(value) for name, value in values.items()})

    def write_texts(self, step: int, name: str, table: Sequence[Mapping[str, str]]) -> None:
        """Writes a table of samples.

        Args:
          step: the step after which they were generated.
          name: name of the table, e.g. "samples/xsum".
          table: rows, each with texts by column ("prompt", "student", "reference").
        """
        if not self._writes:
            return
        rows = [{key: str(value) for key, value in row.items()} for row in table]
        self._append(SAMPLES_FILE, {"step": int(step), "name": name, "rows": rows})
        if self._with_tensorboard:
            with self._tensorboard() as summary:
                summary.text(name, markdown_table(rows), step=int(step))

    def truncate_after(self, step: int) -> None:
        """Removes all rows past the restored step, which a resumed run will write again.

        Files are replaced atomically. TensorBoard, whose files only grow, gets a session start, on
        which it drops the later steps.

        Args:
          step: the restored step, whose own rows stay.

        Raises:
          ValueError: a line in the middle of a file is not JSON.
        """
        self.close()
        if not self._writes:
            return
        for name in (METRICS_FILE, SAMPLES_FILE):
            path = self._directory / name
            if path.exists():
                _keep_rows_until(path, step)
            self._position[name] = _position_of(path)
        self._report_missing_rows(step)
        events = self._directory / TENSORBOARD_FOLDER
        if self._with_tensorboard and events.exists():
            _write_session_start(events, step + 1)
        if self._tracker is not None:
            rows = read_metrics(self._directory) if self._position[METRICS_FILE][0] else []
            self._tracker.begin(step if step >= 0 else None, rows)

    def position(self) -> dict[str, list[int]]:
        """Returns rows, bytes and CRC-32 of each file, to be saved with a checkpoint."""
        return {name: list(position) for name, position in self._position.items()}

    def _report_missing_rows(self, step: int) -> None:
        expected, self._expected = self._expected or {}, None
        for name, position in expected.items():
            rows, size, _ = here = self._position.get(name, [0, 0, 0])
            if list(position) != here:
                print(
                    f"gkd: warning: {self._directory / name} has {rows} rows ({size} bytes) up to "
                    f"step {step}, the checkpoint was saved with {position[0]} ({position[1]} "
                    "bytes): it has been truncated, deleted or changed; the run goes on without "
                    "the missing rows",
                    file=sys.stderr, flush=True,
                )  # fmt: skip

    def flush(self) -> None:
        """Flushes TensorBoard's events to disk (JSON lines are always on disk)."""
        if self._writer is not None:
            with self._one_line_errors():
                self._writer.flush()

    def close(self) -> None:
        """Closes the files; a later write opens them again."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._one_line_errors():
                writer.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        append_lines(self._directory / name, line)
        content = line.encode()
        rows, size, crc = self._position[name]
        self._position[name] = [rows + 1, size + len(content), zlib.crc32(content, crc)]

    def _write_numbers(self, step: int, numbers: Mapping[str, int | float]) -> None:
        """Writes to TensorBoard and the tracker."""
        if self._tracker is not None and numbers:
            self._tracker.log(step, numbers)
        if self._with_tensorboard and numbers:
            with self._tensorboard() as summary:
                for name, value in numbers.items():
                    about = description_of(name)
                    summary.scalar(name, float(value), step=int(step), description=about)

    @contextlib.contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = storage_reason(error)
            if reason is None:
                raise
            raise StorageError(
                f"cannot write {self._directory / TENSORBOARD_FOLDER} ({reason}): put that right, "
                "and the same command continues"
            ) from error

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Any]:
        """Gives `tf.summary`, writing to this run; the first call creates the writer."""
        from gkd.vocabularies.tensorflow_host import tf  # takes seconds, so only when needed

        with self._one_line_errors():
            if self._writer is None:
                folder = os.fspath(self._directory / TENSORBOARD_FOLDER)
                self._writer = tf.summary.create_file_writer(folder)
            with self._writer.as_default():
                yield tf.summary


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the metric rows of a run, in writing order.

    Args:
      directory: path of the run directory.

    Returns:
      One dict per row, with "step" and the values; NaN and infinities are floats. A half-written
      last line is left out.

    Raises:
      FileNotFoundError: the directory holds no metrics.
      ValueError: a line in the middle of the file is not JSON.
    """
    path = pathlib.Path(directory) / METRICS_FILE
    rows = []
    for number, row in enumerate(read_rows(path), start=1):
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(_of_json(value), int | float):
                raise InvalidFile(
                    f"{path}:{number}: {name} is {shown(value)}, not a number: remove the line"
                )
        rows.append({name: _of_json(value) for name, value in row.items()})
    return rows


def read_samples(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the tables of samples of a run, in writing order.

    Args:
      directory: path of the run directory.

    Returns:
      One dict per table: "step", "name" and "rows" with texts by column.

    Raises:
      FileNotFoundError: the directory holds no samples.
      ValueError: the file holds no table, or a line is no table.
    """
    path = pathlib.Path(directory) / SAMPLES_FILE
    tables = read_rows(path)
    if not tables:
        raise InvalidFile(f"{path} holds no table of samples")
    for number, table in enumerate(tables, start=1):
        check_value(table.get("rows"), Field(kinds=(list,)), f"{path}:{number}: rows")
    return tables


def _number(value: Any) -> int | float:
    """Converts a value exactly to a Python number."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)


def _to_json(value: int | float) -> int | float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _of_json(value: Any) -> Any:
    """Converts the strings of `_to_json` back to floats."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _position_of(path: pathlib.Path) -> list[int]:
    """Rows, bytes and CRC-32 of a file."""
    content = path.read_bytes() if path.exists() else b""
    return [content.count(b"\n"), len(content), zlib.crc32(content)]


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a file of JSON rows with a step each; a half-written last line is left out.

    Args:
      path: path of the file.

    Raises:
      InvalidFile: a line in the middle of the file is no such row.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        where = f"{path}:{number}"
        try:
            row = parse_json(line, where, dict)
            check_value(row.get("step"), Field(kinds=(int,), least=0), f"{where}: step")
        except InvalidFile as error:
            raise InvalidFile(
                f"{where}: not a row of JSON with a step ({error}); two processes may have written "
                "at once: remove the line to go on"
            ) from None
        rows.append(row)
    return rows


def _keep_rows_until(path: pathlib.Path, step: int) -> None:
    """Removes the rows after `step`, keeping the others byte for byte."""
    rows = read_rows(path)
    lines = path.read_bytes().split(b"\n")
    kept = [line for line, row in zip(lines, rows, strict=False) if row["step"] <= step]
    if len(kept) == len(rows):
        return
    replace_file(path, b"".join(line + b"\n" for line in kept))


def _write_session_start(folder: pathlib.Path, step: int) -> None:
    """Writes the event on which TensorBoard drops the events of `step` and later."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    # TensorBoard reads files in the order of their names, which begin with a time in seconds: wait
    # until this file's name is the last.
    names = [path.name.split(".") for path in folder.glob("events.out.tfevents.*")]
    seconds = [int(name[3]) for name in names if name[3].isascii() and name[3].isdigit()]
    time.sleep(min(1.0, max(0.0, max(seconds, default=0) + 1 - time.time())))
    writer = EventFileWriter(os.fspath(folder), filename_suffix=".restart")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    for _ in range(2):  # TensorBoard ignores a run's first start: it may follow a graph
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, session_log=start))
    writer.close()
    # Of several files of one second, this one must be read first, whatever the others' counters.
    for path in folder.glob("events.out.tfevents.*.restart"):
        path.rename(path.with_name(".".join([*path.name.split(".")[:4], "-restart"])))
