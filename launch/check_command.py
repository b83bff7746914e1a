"""Refuses a command whose results would be lost with the machines it runs on, before any is made.

    python3 launch/check_command.py keep|ship|both VERB ARGUMENTS…

`keep`: what the verb writes must be in a bucket, also where a gin file says where. `ship`: its gin
files, with what they include, must be in what git ships, as they are here. Prints the bucket that
the results go to; an error is one line, and exit code 2. Python's standard library only: the
machine that launches need not have the requirements.
"""

from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOUNTS = "/buckets/"  # launch/cloud.sh: where the hosts mount buckets
IN_BUCKET = re.compile(rf"(?:gs://|{MOUNTS})([a-z0-9][a-z0-9._-]+)(?:/|$)")
# What says where a verb with gin files writes: the first of these that is set.
PLACES = {
    "train": ("train.model_dir", "%MODEL_DIR"),
    "evaluate": ("evaluate.output", "evaluate.checkpoint", "%MODEL_DIR"),
    "sweep": ("sweep.directory",),
}
BINDING = re.compile(r"([\w./]+)\s*=(?!=)\s*(.*)", re.DOTALL)


class Refused(Exception):
    """A command that is not launched; the message is one line."""


def main(mode: str, verb: str, *arguments: str) -> str:
    """Checks one command.

    Args:
      mode: 'keep', 'ship' or 'both'.
      verb, arguments: what follows `python -m gkd`.

    Returns:
      The bucket that the results go to, "" where none is known.

    Raises:
      Refused: it is not to be launched.
    """
    files = [find(name) for name in gin_files(arguments)]
    bindings: dict[str, str] = {}
    read: list[pathlib.Path] = []
    for file in filter(None, files):
        read_file(file, bindings, read)
    for text in (a.removeprefix("--gin.") for a in arguments if a.startswith("--gin.")):
        key, _, value = text.partition("=")
        bindings[key.rpartition("/")[2]] = value
    if mode in ("ship", "both"):
        for name in gin_files(arguments):
            check_name(name, find(name))
        check_shipped(read)
    return check_kept(verb, arguments, bindings) if mode in ("keep", "both") else ""


def gin_files(arguments: tuple[str, ...]) -> list[str]:
    """The names of --gin_file and --task, in order."""
    found = []
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--gin_file", "--task"):
            found += [value] if equals else arguments[number + 1 : number + 2]
    return found


def find(name: str) -> pathlib.Path | None:
    """A gin file as the command line finds it: here, else in the repository."""
    for folder in (pathlib.Path.cwd(), ROOT):
        if (folder / name).is_file():
            return (folder / name).resolve()
    return None


def read_file(path: pathlib.Path, bindings: dict[str, str], read: list[pathlib.Path]) -> None:
    """Adds the bindings of a gin file and of what it includes, in the order in which they hold."""
    if path in read:
        return
    read.append(path)
    block = ""
    for line in logical_lines(path.read_text(encoding="utf-8", errors="replace")):
        if include := re.match(r"include\s+(['\"])(.+?)\1", line):
            included = ROOT / include[2]
            if included.is_file():
                read_file(included.resolve(), bindings, read)
        elif opened := re.fullmatch(r"([\w./]+)\s*:\s*(#.*)?", line.rstrip()):
            block = opened[1] + "."
        elif found := BINDING.match(line.strip()):
            block = block if line[0].isspace() else ""
            bindings[(block + found[1]).rpartition("/")[2]] = found[2]


def logical_lines(text: str) -> list[str]:
    """The statements of a gin file, each on one line of the result; comments alone are left out."""
    statements, held = [], ""
    for line in text.splitlines():
        held = f"{held}\n{line}" if held else line
        bare = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"|#.*", "", held)
        is_open = sum(map(bare.count, "([{")) > sum(map(bare.count, ")]}"))
        if is_open or held.endswith("\\"):
            held = held.removesuffix("\\")
            continue
        if bare.strip() or "'" in held or '"' in held:
            statements.append(held)
        held = ""
    return statements


def check_name(name: str, file: pathlib.Path | None) -> None:
    """Refuses a gin file that the hosts would not find under this name."""
    if file is None:
        return  # the run says so itself
    if not file.is_relative_to(ROOT):
        raise Refused(
            f"gin file {name} is outside of the repository, of which the hosts get a copy: move it "
            f"into {ROOT} and commit it"
        )
    there = file.relative_to(ROOT)
    if os.path.isabs(name) and pathlib.Path(name).resolve() == file:
        return  # the launcher makes it relative
    if (ROOT / name).resolve() != file:
        raise Refused(f"gin file {name} is {there} to the hosts: give that name")


def check_shipped(files: list[pathlib.Path]) -> None:
    """Refuses gin files that git does not ship as they are here."""
    for file in files:
        if not file.is_relative_to(ROOT):
            raise Refused(f"gin file {file} is outside of the repository: the hosts do not get it")
    if not files:
        return
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--ignored"]
    command += ["--untracked-files=all", "--", *map(str, files)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Refused(f"git cannot say whether the gin files are committed: {error}") from None
    changed = [line[3:] for line in done.stdout.splitlines() if line[2:3] == " "]
    if done.returncode == 0 and changed:
        raise Refused(
            f"gin file {changed[0]} is not committed as it is here, and the hosts get what is: "
            "commit it first"
        )


def check_kept(verb: str, arguments: tuple[str, ...], bindings: dict[str, str]) -> str:
    """Refuses results outside of buckets; returns the bucket's name."""
    if os.environ.get("KEEP_NOTHING") == "1":
        return ""
    if verb in PLACES:
        if verb == "train" and value_of(bindings, "%DRY_RUN")[1] is True:
            return ""
        named = [value_of(bindings, name) for name in PLACES[verb]]
        shown, place = next((pair for pair in named if pair[1] is not None), named[-1])
    elif verb == "infer":
        place, shown = option(arguments, "--output"), "--output"
    elif verb == "convert":
        words = [word for word in arguments if not word.startswith("--")]
        place, shown = (words[1] if len(words) > 1 else None), "DST"
    else:
        return ""  # it writes nothing, or there is no such verb
    found = IN_BUCKET.match(place) if isinstance(place, str) else None
    if found is None:
        what = f"{shown} is {place!r}" if place is not None else f"{shown} is not set"
        raise Refused(
            f"{what}: the results would be lost with the machines; set it to a place in a bucket "
            "(gs://BUCKET/…), or KEEP_NOTHING=1 where nothing of it is to be kept"
        )
    return found[1]


def option(arguments: tuple[str, ...], name: str) -> str | None:
    """The last value of an option."""
    value = None
    for number, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
        elif argument == name:
            value = "".join(arguments[number + 1 : number + 2])
    return value


def value_of(bindings: dict[str, str], place: str) -> tuple[str, object]:
    """The name that sets a parameter, or a macro (`%NAME`), and the value; None where none does."""
    texts = [text for key, text in bindings.items() if f".{key}".endswith(f".{place}")]
    name, text = place.lstrip("%"), place if place[0] == "%" else (texts or ["None"])[-1]
    for _ in range(20):  # macros of macros
        reference = re.match(r"%([\w./]+)", text.strip())
        if not reference:
            break
        name, text = reference[1], bindings.get(reference[1], "None")
    try:
        return name, ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return name, text.strip()


if __name__ == "__main__":
    try:
        print(main(*sys.argv[1:]))
    except Refused as refused:
        print(f"gkd: error: {refused}", file=sys.stderr)
        sys.exit(2)
