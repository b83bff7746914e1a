"""The documentation as tests see it: pages, fenced blocks, headings, links and tables."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

from tests.paths import REPOSITORY

LANGUAGES = ("bash", "python", "gin", "text", "json")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its page, the number of its first line, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block shows, as its first line gives it (`# name.gin`)."""
        named = re.match(r"# ([\w./-]+\.(?:gin|py))\b", self.text)
        return named and named[1]


def page_paths() -> list[pathlib.Path]:
    """README.md, the other pages beside it, and docs/."""
    return sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])


def names() -> list[str]:
    return [str(path.relative_to(REPOSITORY)) for path in page_paths()]


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page in order, those of one language where it is given."""
    found, opened = [], None
    for number, line in enumerate(read(page).splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened = (number + 1, line[3:].strip(), [])
        elif opened is not None and line.rstrip() == "```":
            first, its_language, lines = opened
            found.append(Block(page, first, its_language, "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            opened[2].append(line)
    assert opened is None, f"{page}: a fenced block is not closed"
    return [block for block in found if language in (None, block.language)]


def commands(page: str) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """(place, environment, words) of every command; exports hold until the page's end."""
    environment: dict[str, str] = {}
    for block in blocks(page, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            own = {}
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                own[name] = value
            if words and words[0] == "export":
                environment |= dict(word.split("=", 1) for word in words[1:])
            elif words:
                yield f"{page}:{block.line}: {line}", {**environment, **own}, words


def prose(page: str) -> str:
    """The text of a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return [heading.replace(" ", "-") for heading in plain]


def links(page: str) -> list[str]:
    """The targets of a page's links."""
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page))


def tables(page: str, heading: str) -> list[list[str]]:
    """The rows of all tables below a heading, cell by cell, without the tables' own heads."""
    text = prose(page)
    assert f"\n## {heading}\n" in text or f"\n### {heading}\n" in text, f"{page}: no {heading}"
    section = re.split(rf"^##+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    section = re.split(r"^##+ ", section, flags=re.MULTILINE)[0]
    rows: list[list[str]] = []
    for line in section.splitlines():
        if re.fullmatch(r"\|[\s:|-]+\|", line):
            rows.pop()  # what stands above the rule is the head
        elif line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            rows.append([cell.strip().replace("\\|", "|") for cell in cells])
    return rows
