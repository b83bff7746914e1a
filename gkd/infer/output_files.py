"""Writes the output of `infer` in whole windows, and checks it before it is continued."""

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

from gkd.errors import ExistingFile, InvalidFile, InvalidValue
from gkd.files.atomic_files import (
    append_lines,
    cannot_write,
    check_folder_of,
    make_folder_of,
    remove_unfinished_line,
    replace_file,
    write_json,
)
from gkd.runs.lease import Lease
from gkd.runs.provenance import provenance

_READ_BYTES = 1 << 22
_LATER_SETTINGS = ("model_digest",)  # records of earlier versions lack them


@dataclasses.dataclass(frozen=True)
class OutputFiles:
    """The output, OUTPUT.partial while it is being written, and OUTPUT.settings.json.

    Beside the partial output, OUTPUT.partial.hashes has the SHA-256 of every window on a line, by
    which damage is detected before the output is continued.

    Attributes:
      output: final path of the output.
      window: number of inputs per window.
      count: number of all inputs.
      samples: number of lines per input.
    """

    output: pathlib.Path
    window: int = 1
    count: int = 0
    samples: int = 1

    @property
    def partial(self) -> pathlib.Path:
        """Path of the windows written so far."""
        return pathlib.Path(f"{self.output}.partial")

    @property
    def hashes(self) -> pathlib.Path:
        """Path of the SHA-256 of each window of the partial output."""
        return pathlib.Path(f"{self.output}.partial.hashes")

    @property
    def settings(self) -> pathlib.Path:
        """Path of the record of settings and launches, which stays beside the output."""
        return pathlib.Path(f"{self.output}.settings.json")

    def check(self) -> None:
        """Checks that the output can be written.

        Raises:
          NotADirectoryError: what would be its folder is a file.
          ValueError: the name does not end in .jsonl, or belongs to a folder.
        """
        if self.output.suffix != ".jsonl":
            raise InvalidValue(f"output {self.output} holds JSON lines: give it a name in .jsonl")
        check_folder_of(self.output)
        if self.output.is_dir():
            raise InvalidValue(f"output {self.output} is a folder: give the name of a file")

    def lease(self) -> Lease:
        """Builds the lease under which one launch at a time writes the output; makes its folder."""
        make_folder_of(self.output)
        return Lease(self.output, f"output {self.output}")

    def is_complete(self, settings: Mapping[str, Any]) -> bool:
        """Checks a complete output thoroughly, without writing anything.

        Args:
          settings: all settings that the output depends on.

        Returns:
          True if there is a complete output.

        Raises:
          FileExistsError: it was written with other settings.
          ValueError: it has been truncated, damaged or changed.
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
        else:  # written by a version that recorded no hash
            with open(self.output, "rb") as file:
                for number in range(wanted):
                    problem = problem or self._problem_of(file.readline(), number)
        if problem:
            raise InvalidFile(
                f"{self.output} {problem}: it was damaged or changed after it was complete; delete "
                "it to write it again, or choose another --output"
            )
        return True

    def resume(self, settings: Mapping[str, Any]) -> int | None:
        """Records this launch, and removes incomplete windows.

        Args:
          settings: all settings that the output depends on.

        Returns:
          Number of complete inputs; None if the whole output is complete.

        Raises:
          FileExistsError: there is an output with other settings.
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
        """Reads the settings file, and refuses other settings than these."""
        new = "choose another --output, or delete {} to start again"
        if not self.settings.exists():
            for path in (self.output, self.partial):
                if path.exists():
                    raise ExistingFile(
                        f"{path} exists, but not {self.settings} with its settings: "
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
        before = {name: settings[name] for name in _LATER_SETTINGS if name in settings} | before
        for name in (*settings, *before):
            if before.get(name) != settings.get(name):
                raise ExistingFile(
                    f"{self.output} was begun with {name} {before.get(name)!r}, this is "
                    f"{settings.get(name)!r}: give the same to continue, "
                    + new.format(f"{self.output}*")
                )
        return {"launches": launches, "output": record.get("output")}

    def _keep_sound_windows(self) -> int:
        """Truncates the partial output after its last intact window.

        Only whole windows are kept, so that batches are the same as in an uninterrupted call.

        Returns:
          Number of inputs that are kept.
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
                    if number < len(known):  # only complete windows have a hash
                        problem = f"ends within lines {first + 1} to {first + size}"
                    break
                problem = self._problem_of_window(lines, first, known[number : number + 1])
                if problem:
                    break
                kept.append(_sha256(lines))
                end = file.tell()
            else:
                if file.read(1):
                    problem = f"continues after its last line, {self.count * self.samples}"
        done = min(len(kept) * self.window, self.count)
        if problem:
            print(
                f"gkd: warning: {self.partial} is damaged ({problem}): the lines after input "
                f"{done} are written again",
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
        """Yields the number of lines of each window."""
        for first in range(0, self.count, self.window):
            yield min(self.window, self.count - first) * self.samples

    def _problem_of_window(
        self, lines: Sequence[bytes], first: int, known: Sequence[str]
    ) -> str | None:
        """Describes the first fault of a window's lines, or None; `first` counts from 0."""
        for number, line in enumerate(lines, start=first):
            if problem := self._problem_of(line, number):
                return problem
        if known and known[0] != _sha256(lines):
            return f"lines {first + 1} to {first + len(lines)} have another SHA-256 than written"
        return None

    def _problem_of(self, line: bytes, number: int) -> str | None:
        """Describes the fault of a line, or None; `number` counts from 0."""
        index, sample = divmod(number, self.samples)
        try:
            row = json.loads(line)
            fits = (row["index"], row["sample"]) == (index, sample)
        except (ValueError, KeyError, TypeError, RecursionError):
            return f"line {number + 1} is no output"
        return None if fits else f"line {number + 1} is not sample {sample} of input {index}"

    def append(self, text: str) -> None:
        """Appends the lines of a window, and returns when they are on disk.

        Args:
          text: the lines.

        Raises:
          OSError: they could not be written, and were removed.
        """
        # A lone surrogate in a field that is only copied becomes a JSON escape again.
        content = text.encode("utf-8", "backslashreplace")
        append_lines(self.partial, content, sync=True)
        append_lines(self.hashes, hashlib.sha256(content).hexdigest() + "\n")

    def finish(self) -> None:
        """Checks the number of lines, records the hash, and renames the output.

        Raises:
          ValueError: the file has another number of lines than was written.
        """
        lines, size, sha256 = _measure(self.partial)
        if lines != self.count * self.samples:
            raise InvalidFile(
                f"{self.partial} has {lines} of {self.count * self.samples} lines: it was changed "
                "while it was written; the same command continues after the intact windows"
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
    """Lines, bytes and SHA-256 of a file."""
    digest, lines, size = hashlib.sha256(), 0, 0
    with open(path, "rb") as file:
        for block in _blocks(file):
            digest.update(block)
            lines, size = lines + block.count(b"\n"), size + len(block)
    return lines, size, digest.hexdigest()


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_READ_BYTES):
        yield block
