"""The output of `infer`: written in whole windows, checked before it is continued or complete."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from gkd.errors import ExistingFile, InvalidFile, InvalidValue, MissingFile
from gkd.files.atomic_files import (
    append_lines,
    cannot_write,
    remove_unfinished_line,
    replace_file,
    write_json,
)
from gkd.runs.lease import Lease
from gkd.runs.provenance import provenance

_READ_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class OutputFiles:
    """The output, OUTPUT.partial while it is being written, and OUTPUT.settings.json.

    Beside the partial output, OUTPUT.partial.hashes has a line per window with its SHA-256, so that
    damage to what is continued is noticed.

    Attributes:
      output: the path under its final name.
      window: inputs that are written at once.
      count: inputs in all.
      samples: lines per input.
    """

    output: pathlib.Path
    window: int = 1
    count: int = 0
    samples: int = 1

    @property
    def partial(self) -> pathlib.Path:
        """The whole windows written so far."""
        return pathlib.Path(f"{self.output}.partial")

    @property
    def hashes(self) -> pathlib.Path:
        """The SHA-256 of each window of the partial output."""
        return pathlib.Path(f"{self.output}.partial.hashes")

    @property
    def settings(self) -> pathlib.Path:
        """How and from what the output is made; stays beside it."""
        return pathlib.Path(f"{self.output}.settings.json")

    def check(self) -> None:
        """Raises FileNotFoundError or ValueError where the output cannot be written."""
        if self.output.suffix != ".jsonl":
            raise InvalidValue(f"output {self.output} holds JSON lines: give it a name in .jsonl")
        if not self.output.parent.is_dir():
            raise MissingFile(f"output {self.output}: {self.output.parent} is no folder")
        if self.output.is_dir():
            raise InvalidValue(f"output {self.output} is a folder: give the name of a file")

    def lease(self) -> Lease:
        """The lease under which one launch at a time writes the output."""
        return Lease(self.output, f"output {self.output}")

    def is_complete(self, settings: Mapping[str, Any]) -> bool:
        """Checks an output that is there under its own name, all of it; nothing is written.

        Args:
          settings: everything that the output depends on.

        Returns:
          Whether there is one.

        Raises:
          FileExistsError: it was made with other settings.
          ValueError: it is not what was written: cut, damaged or changed since.
        """
        record = self._record(_as_json(settings))
        if not self.output.exists():
            return False
        lines, size, sha256 = _measure(self.output)
        wanted = self.count * self.samples
        problem = None
        if lines != wanted:
            problem = f"has {lines} of {wanted} lines"
        elif record["output"] is not None:
            if record["output"] != {"lines": lines, "bytes": size, "sha256": sha256}:
                problem = "has another SHA-256 than when it was written"
        else:  # of a version that recorded none
            with open(self.output, "rb") as file:
                for number in range(wanted):
                    problem = problem or self._problem_of(file.readline(), number)
        if problem:
            raise InvalidFile(
                f"{self.output} {problem}: it was damaged or changed after it was complete; delete "
                "it to make it again, or choose another --output"
            )
        return True

    def resume(self, settings: Mapping[str, Any]) -> int | None:
        """Records this launch and drops what is not complete.

        Args:
          settings: everything that the output depends on.

        Returns:
          How many inputs are done; None where all are, under the output's own name.

        Raises:
          FileExistsError: there is an output that these settings do not continue.
        """
        settings = _as_json(settings)
        if self.is_complete(settings):
            return None
        record = self._record(settings)
        done = self._keep_sound_windows()
        launch = {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "inputs_done_before": done,
            **provenance(),
        }
        launches = [*record["launches"], launch]
        write_json(self.settings, {"settings": settings, "launches": launches})
        return done

    def _record(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the settings file holds, if it agrees with these settings."""
        new = "choose another --output, or delete {} to start again"
        if not self.settings.exists():
            for path in (self.output, self.partial):
                if path.exists():
                    raise ExistingFile(
                        f"{path} exists, but not {self.settings}, which would say how it was made: "
                        + new.format("it")
                    )
            return {"launches": [], "output": None}
        try:
            record = json.loads(self.settings.read_bytes())
            before, launches = dict(record["settings"]), list(record["launches"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidFile(
                f"{self.settings} is damaged ({error}): " + new.format(f"{self.output}*")
            ) from error
        for name in (*settings, *before):
            if before.get(name) != settings.get(name):
                raise ExistingFile(
                    f"{self.output} was begun with {name} {before.get(name)!r}, this is "
                    f"{settings.get(name)!r}: give the same to continue, "
                    + new.format(f"{self.output}*")
                )
        return {"launches": launches, "output": record.get("output")}

    def _keep_sound_windows(self) -> int:
        """Cuts the partial output after its last window that is whole and as it was written.

        Whole windows only: their batches are then the same as those of an uninterrupted run.

        Returns:
          The number of inputs that are kept.
        """
        if not self.partial.exists():
            self.hashes.unlink(missing_ok=True)
            return 0
        known = self._known_hashes()
        kept: list[str] = []
        end, problem = 0, None
        with open(self.partial, "rb") as file:
            for number, size in enumerate(self._window_sizes()):
                lines = [file.readline() for _ in range(size)]
                first = number * self.window * self.samples
                if not lines[-1].endswith(b"\n"):
                    if number < len(known):  # it was there whole, or it would have no hash
                        problem = f"ends within lines {first + 1} to {first + size}"
                    break
                problem = self._problem_of_window(lines, first, known[number : number + 1])
                if problem:
                    break
                kept.append(_sha256(lines))
                end = file.tell()
            else:
                if file.read(1):
                    problem = f"goes on after its last line, {self.count * self.samples}"
        done = min(len(kept) * self.window, self.count)
        if problem:
            print(
                f"gkd: warning: {self.partial} is damaged ({problem}): what follows input {done} "
                "of it is made again",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        try:
            os.truncate(self.partial, end)
        except OSError as error:
            raise cannot_write(self.partial, error) from error
        if kept != known:
            replace_file(self.hashes, "".join(f"{value}\n" for value in kept))
        return done

    def _known_hashes(self) -> list[str]:
        if not self.hashes.exists():
            return []
        remove_unfinished_line(self.hashes)
        return self.hashes.read_text(errors="replace").splitlines()

    def _window_sizes(self) -> Iterator[int]:
        """The number of lines of each window."""
        for first in range(0, self.count, self.window):
            yield min(self.window, self.count - first) * self.samples

    def _problem_of_window(
        self, lines: Sequence[bytes], first: int, known: Sequence[str]
    ) -> str | None:
        """What is wrong with a window's lines, None where nothing is; `first` counts from 0."""
        for number, line in enumerate(lines, start=first):
            if problem := self._problem_of(line, number):
                return problem
        if known and known[0] != _sha256(lines):
            return f"lines {first + 1} to {first + len(lines)} have another SHA-256 than written"
        return None

    def _problem_of(self, line: bytes, number: int) -> str | None:
        """What is wrong with a line, None where nothing is; `number` counts from 0."""
        index, sample = divmod(number, self.samples)
        try:
            row = json.loads(line)
            fits = (row["index"], row["sample"]) == (index, sample)
        except (ValueError, KeyError, TypeError, RecursionError):
            return f"line {number + 1} is no output"
        return None if fits else f"line {number + 1} is not sample {sample} of input {index}"

    def append(self, text: str) -> None:
        """Adds a window's lines, and returns when they are on disk.

        Raises:
          OSError: they could not be written; nothing of them is left.
        """
        # A lone surrogate, in a field that is only passed on, becomes the JSON escape it was.
        content = text.encode("utf-8", "backslashreplace")
        append_lines(self.partial, content, sync=True)
        append_lines(self.hashes, hashlib.sha256(content).hexdigest() + "\n")

    def finish(self) -> None:
        """Counts the lines, records them and their hash, and gives the output its name.

        Raises:
          ValueError: the file has another number of lines than was written.
        """
        lines, size, sha256 = _measure(self.partial)
        if lines != self.count * self.samples:
            raise InvalidFile(
                f"{self.partial} has {lines} of {self.count * self.samples} lines: it was changed "
                "while it was written; the same command continues after what is sound"
            )
        record = json.loads(self.settings.read_bytes())
        record["output"] = {"lines": lines, "bytes": size, "sha256": sha256}
        write_json(self.settings, record)
        os.replace(self.partial, self.output)
        self.hashes.unlink(missing_ok=True)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings))


def _sha256(lines: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _measure(path: pathlib.Path) -> tuple[int, int, str]:
    """A file's lines, bytes and SHA-256."""
    digest, lines, size = hashlib.sha256(), 0, 0
    with open(path, "rb") as file:
        for block in _blocks(file):
            digest.update(block)
            lines, size = lines + block.count(b"\n"), size + len(block)
    return lines, size, digest.hexdigest()


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_READ_BYTES):
        yield block
