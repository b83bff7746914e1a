"""Lists the macros of a verb with their values and meanings, read from the gin files themselves.

The meaning of a macro is the comment beside it in its gin file, or directly above it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from gkd.configuration.gin_files import (
    CONFIGS_ROOT,
    GinReader,
    Macro,
    Reference,
    display_name,
    references_in,
    resolve_gin_file,
)

_SET = re.compile(r"([A-Z][A-Z0-9_]*) = .*?(?:  # (.*))?")
_UNSET = re.compile(r"# ([A-Z][A-Z0-9_]*) =  # (.*)")
# The files that hold the defaults of a verb's macros, where its command names none.
_DEFAULTS = {
    "train": ("configs/train.gin", "configs/tasks/local_text.gin"),
    "evaluate": ("configs/train.gin", "configs/tasks/local_text.gin"),
    "sweep": ("configs/sweeps/common.gin",),
}
_SELECTORS = {"train": "train.train", "evaluate": "evaluate.evaluate"}
_WIDTH, _LONGEST = 100, 300  # columns, and characters of a value


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a gin file's description: a macro with its meaning, or a heading.

    Attributes:
      macro: name of the macro; empty for a heading.
      text: its meaning, may be empty; or the heading.
    """

    macro: str
    text: str


def entries(text: str) -> Iterator[Entry]:
    """Reads headings, macros and their meanings from the text of a gin file.

    Args:
      text: the gin file.

    Yields:
      An entry per macro that the file sets or, as a comment `# NAME =  # meaning`, requires; and
      one per comment that an empty line follows.

    >>> list(entries("# Data.\\n\\n# of a step\\nROWS = 8\\nSEED = 0  # of the order\\n"))
    [Entry(macro='', text='Data.'), Entry(macro='ROWS', text='of a step'), \
Entry(macro='SEED', text='of the order')]
    """
    above: list[str] = []
    for line in text.splitlines():
        required, given = _UNSET.fullmatch(line), _SET.fullmatch(line)
        if required:
            yield Entry(required[1], required[2])
        elif line.startswith("#"):
            above.append(line.lstrip("# "))
            continue
        elif given:
            yield Entry(given[1], given[2] or " ".join(above))
        elif not line and above:
            yield Entry("", " ".join(above))
        above = []


def macro_help(verb: str, gin_files: Sequence[str] = (), overrides: Sequence[str] = ()) -> str:
    """Describes all macros of a verb, with their defaults or, of given files, their values.

    Args:
      verb: `train`, `evaluate` or `sweep`.
      gin_files: gin files of the command; by default those with the verb's defaults.
      overrides: overrides NAME=VALUE of the command.

    Returns:
      The text. Every macro is listed under the file that describes it first.

    Raises:
      ConfigError: a file is missing or malformed.
    """
    reader = GinReader()
    for name in gin_files or _DEFAULTS[verb]:
        reader.read_file(resolve_gin_file(name))
    for override in overrides:
        reader.read_override(override, ())
    values = {b.macro: b for b in reader.final_bindings() if b.macro}
    hidden = _unused(reader, verb)
    lines = [
        f"macros of {' '.join(gin_files)}, with their values:"
        if gin_files
        else "macros, with their defaults (with --gin_file=FILE, with the values of that run):"
    ]
    shown: set[str] = set()
    described = {path: _described(path) for path in _paths(reader)}
    meanings = {e.macro for found in described.values() for e in found if e.macro and e.text}
    for path, found in described.items():
        own = [
            entry
            for entry in found
            if entry.macro not in shown | hidden and (entry.text or entry.macro not in meanings)
        ]
        shown |= {entry.macro for entry in own if entry.macro}
        section = list(_section(own, values, display_name(path)))
        if section:
            lines += ["", f"{display_name(path)}:", *section]
    if not gin_files and verb != "sweep":
        lines += ["", *_other_tasks(shown)]
    return "\n".join(lines)


def _described(path: pathlib.Path) -> list[Entry]:
    return list(entries(path.read_text(encoding="utf-8-sig")))


def _paths(reader: GinReader) -> list[pathlib.Path]:
    """The files that were read, each once: the defaults of all runs, gkd's own, the user's."""
    paths = dict.fromkeys(source.path for source in reader.sources if source.path)
    folder = CONFIGS_ROOT / "configs"
    return sorted(
        paths, key=lambda path: (path != folder / "train.gin", not path.is_relative_to(folder))
    )


def _section(found, values, name) -> Iterator[str]:
    """The lines of one file: its macros below their headings."""
    heading = ""
    for entry in found:
        if not entry.macro:
            heading = entry.text
            continue
        if heading:
            yield from ("", *_wrapped(heading, "  "))
            heading = ""
        yield from _macro_lines(entry, values.get(entry.macro), name)


def _macro_lines(entry: Entry, binding: Any, name: str) -> Iterator[str]:
    if binding is None:
        value = " must be set"
    else:
        text = repr(binding.value)
        short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
        place = "" if binding.source.name == name else f"  ({binding.place})"
        value = f" = {short}{place}"
    yield f"  {entry.macro}{value}"
    yield from _wrapped(entry.text, " " * 8)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _other_tasks(shown: set[str]) -> Iterator[str]:
    """The macros that only other tasks have, with the files that set them."""
    where: dict[str, list[str]] = {}
    meaning: dict[str, str] = {}
    folder = CONFIGS_ROOT / "configs"
    for path in [*sorted((folder / "tasks").glob("*.gin")), folder / "teacher_outputs.gin"]:
        for entry in _described(path):
            if entry.macro and entry.macro not in shown:
                where.setdefault(entry.macro, []).append(path.stem)
                meaning[entry.macro] = meaning.get(entry.macro) or entry.text
    yield "macros of other task files (configs/tasks) and of configs/teacher_outputs.gin:"
    for macro, files in where.items():
        if meaning[macro]:
            yield f"  {macro} ({', '.join(files)})"
            yield from _wrapped(meaning[macro], " " * 8)


def _unused(reader: GinReader, verb: str) -> set[str]:
    """The macros of the other verbs with the same gin files, e.g. TRAIN_STEPS of `evaluate`."""
    used = {name: _used(reader, selector) for name, selector in _SELECTORS.items()}
    others = set().union(*(macros for name, macros in used.items() if name != verb))
    return others - used[verb] if used.get(verb) else set()


def _used(reader: GinReader, selector: str) -> set[str]:
    """The macros that a function's bindings and those of its arguments name."""
    macros: set[str] = set()
    waiting, seen = [selector], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for binding in reader.final_bindings():
            if binding.macro or binding.selector != name:
                continue
            for reference in references_in(binding.value):
                if isinstance(reference, Macro):
                    macros.add(reference.name)
                elif isinstance(reference, Reference) and reference.selector not in seen:
                    waiting.append(reference.selector)
    return macros
