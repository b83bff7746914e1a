"""Metrics and sample tables of a run: JSON lines, exact and resumable, and TensorBoard (clu).

`metrics.jsonl` has one row a write: {"step": 10, "train/loss": 0.6931471805599453}. Numbers have
all their digits, so that two runs can be compared bit for bit; not-a-number and the infinities,
which JSON lacks, are the strings "NaN", "Infinity" and "-Infinity", which `float()` reads. Rows
hold no times, which would differ between runs that are equal. `samples.jsonl` holds the tables.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.jobs.whole_files import append_lines, cut_unfinished_line, replace_file
from gkd.parallel import processes

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Appends to the metrics of a run directory; of a job's processes, the first one writes.

    A row is on disk when `write` returns: a killed process loses none of them, and at most the
    last is half written, which the next opening drops. Write a step's rows before saving its
    checkpoint, so that a resume from there misses none.
    """

    def __init__(self, directory: str | os.PathLike[str], tensorboard: bool = True) -> None:
        """Opens or makes the files.

        Args:
          directory: the run directory.
          tensorboard: whether to write TensorBoard events too (imports TensorFlow).
        """
        self._directory = pathlib.Path(directory)
        self._writes = processes.is_first()
        self._with_tensorboard = tensorboard
        self._writer: Any = None  # made at the first write, after `truncate_after`
        if not self._writes:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in (METRICS_FILE, SAMPLES_FILE):
            cut_unfinished_line(self._directory / name)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          step: the step after which the values hold.
          values: names such as "train/loss" to numbers: Python's, NumPy's or 0-d arrays.
        """
        if not self._writes:
            return
        numbers = {name: _number(value) for name, value in values.items()}
        row = {"step": int(step)} | {name: _to_json(value) for name, value in numbers.items()}
        self._append(METRICS_FILE, row)
        if self._with_tensorboard:
            self._tensorboard().write_scalars(int(step), numbers)

    def write_events(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes numbers to TensorBoard only: times, which differ between runs that are equal."""
        if self._writes and self._with_tensorboard and values:
            numbers = {name: _number(value) for name, value in values.items()}
            self._tensorboard().write_scalars(int(step), numbers)

    def write_texts(self, step: int, name: str, table: Sequence[Mapping[str, str]]) -> None:
        """Writes a table of samples.

        Args:
          step: the step after which they were made.
          name: e.g. "samples/xsum".
          table: rows, each from column names ("prompt", "student", "reference") to text.
        """
        if not self._writes:
            return
        rows = [{key: str(value) for key, value in row.items()} for row in table]
        self._append(SAMPLES_FILE, {"step": int(step), "name": name, "rows": rows})
        if self._with_tensorboard:
            self._tensorboard().write_texts(int(step), {name: markdown_table(rows)})

    def truncate_after(self, step: int) -> None:
        """Removes what a resumed run will write again: everything past the restored step.

        Files are replaced whole, so a crash leaves the old or the new. TensorBoard, whose files
        only grow, gets a session start that makes it forget the later steps.

        Args:
          step: the restored step; its own rows stay.

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
        events = self._directory / TENSORBOARD_FOLDER
        if self._with_tensorboard and events.exists():
            _write_session_start(events, step + 1)

    def flush(self) -> None:
        """Puts TensorBoard's events on disk (the JSON lines are already there)."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Ends writing; a later write opens again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        append_lines(self._directory / name, line)

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from clu import metric_writers  # imports TensorFlow, so only when needed

            folder = os.fspath(self._directory / TENSORBOARD_FOLDER)
            self._writer = metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(folder)])
        return self._writer


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the metric rows of a run, in writing order.

    Args:
      directory: the run directory.

    Returns:
      One dict a row: "step" and the values; NaN and infinities as floats. A half-written last
      line is left out.

    Raises:
      FileNotFoundError: the directory holds no metrics.
      ValueError: a line in the middle of the file is not JSON.
    """
    rows = _read_rows(pathlib.Path(directory) / METRICS_FILE)
    return [
        {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
        for row in rows
    ]


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Formats rows as a Markdown table with the columns of the first row."""
    if not rows:
        return "(no rows)"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[row.get(column, "") for column in columns] for row in rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |"
        for line in lines
    )


def _number(value: Any) -> int | float:
    """A Python number with the value's exact value."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) and not isinstance(value, bool) else float(value)


def _to_json(value: int | float) -> int | float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:  # also UnicodeDecodeError
            raise ValueError(
                f"{path}:{number}: not a row of JSON; two processes may have written at once: "
                "remove the line to go on"
            ) from None
    return rows


def _keep_rows_until(path: pathlib.Path, step: int) -> None:
    """Replaces the file by its rows of `step` and before, byte for byte."""
    rows = _read_rows(path)
    lines = path.read_bytes().split(b"\n")
    kept = [line for line, row in zip(lines, rows, strict=False) if row["step"] <= step]
    if len(kept) == len(rows):
        return
    replace_file(path, b"".join(line + b"\n" for line in kept))


def _write_session_start(folder: pathlib.Path, step: int) -> None:
    """Writes the event on which TensorBoard drops the events of `step` and later."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    # TensorBoard reads the files by name, which begins with the second: be later than all others.
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    time.sleep(min(1.0, max(0.0, max(seconds, default=0) + 1 - time.time())))
    writer = EventFileWriter(os.fspath(folder), filename_suffix=".restart")
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    for _ in range(2):  # TensorBoard ignores a run's first start: it may follow a graph
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, session_log=start))
    writer.close()
