"""Refuses a command whose results would be lost with its machines, before any is created.

    python3 launch/check_command.py keep|ship|both VERB ARGUMENTS…

`keep`: the output of the verb must be in a bucket, also if a gin file sets its path. `ship`: its
gin files and their includes must be committed. Prints the bucket of the results; an error is one
line, with exit code 2. Python's standard library only: the launching machine need not have the
requirements.
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
IN_BUCKET = re.compile(rf"(?:gs://|{MOUNTS})([a-z0-9][a-z0-9._-]+)(?:/(?!/|(?:.*/)?\.\.(?:/|$))|$)")
# Settings of the output of a verb with gin files: the first one that is set counts.
PLACES = {
    "train": ("train.model_dir", "%MODEL_DIR"),
    "evaluate": ("evaluate.output", "evaluate.checkpoint", "%MODEL_DIR"),
    "sweep": ("sweep.directory",),
}
BINDING = re.compile(r"([\w./]+)\s*=(?!=)\s*(.*)", re.DOTALL)


class Refused(Exception):
    """Raised for a command that must not be launched; the message is one line."""


def main(mode: str, verb: str, *arguments: str) -> str:
    """Checks one command.

    Args:
      mode: 'keep', 'ship' or 'both'.
      verb, arguments: the command line after `python -m gkd`.

    Returns:
      The bucket of the results, "" if unknown.

    Raises:
      Refused: the command must not be launched.
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
    """Lists the values of --gin_file and --task, in order."""
    found = []
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--gin_file", "--task"):
            found += [value] if equals else arguments[number + 1 : number + 2]
    return found


def find(name: str) -> pathlib.Path | None:
    """Finds a gin file in the current directory, else in the repository."""
    for folder in (pathlib.Path.cwd(), ROOT):
        if (folder / name).is_file():
            return (folder / name).resolve()
    return None


def read_file(path: pathlib.Path, bindings: dict[str, str], read: list[pathlib.Path]) -> None:
    """Adds the bindings of a gin file and its includes, in order of priority."""
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
    """Splits a gin file into statements, without lines of comments."""
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
        return  # the run reports it
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
    """Refuses gin files that are not committed in their present form."""
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
        raise Refused(f"git cannot determine if the gin files are committed: {error}") from None
    changed = [line[3:] for line in done.stdout.splitlines() if line[2:3] == " "]
    if done.returncode == 0 and changed:
        raise Refused(
            f"gin file {changed[0]} is not committed in its present form, and the hosts get the "
            "last commit: commit it first"
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
        words = positional(arguments)
        place, shown = (words[1] if len(words) > 1 else None), "DST"
    else:
        return ""  # it writes nothing, or there is no such verb
    bucket = IN_BUCKET.match(place) if isinstance(place, str) else None
    if bucket is None:
        what = f"{shown} is {place!r}" if place is not None else f"{shown} is not set"
        raise Refused(
            f"{what}: the results would be lost with the machines; set it to a place in a bucket "
            "(gs://BUCKET/…), or KEEP_NOTHING=1 if the results may be lost"
        )
    return bucket[1]


def positional(arguments: tuple[str, ...]) -> list[str]:
    """Returns the words that are neither options nor their values: every option has a value."""
    words, follows = [], False
    for argument in arguments:
        if not follows and not argument.startswith("--"):
            words.append(argument)
        follows = not follows and argument.startswith("--") and "=" not in argument
    return words


def option(arguments: tuple[str, ...], name: str) -> str | None:
    """Returns the last value of an option."""
    value = None
    for number, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            value = argument.partition("=")[2]
        elif argument == name:
            value = "".join(arguments[number + 1 : number + 2])
    return value


def value_of(bindings: dict[str, str], place: str) -> tuple[str, object]:
    """Returns the name that sets a parameter or macro (`%NAME`), and its value or None."""
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
