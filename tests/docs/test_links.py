"""Links of the documentation lead somewhere, its blocks have languages, its files exist."""

import re

import pytest

from tests.docs import pages
from tests.paths import REPOSITORY


@pytest.mark.parametrize("page", pages.names())
def test_relative_links_and_anchors_exist(page):
    for target in pages.links(page):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert linked.exists(), f"{page}: {target}: no such file"
        if anchor:
            name = str(linked.resolve().relative_to(REPOSITORY))
            assert anchor in pages.anchors(name), f"{page}: {target}: no such heading"


@pytest.mark.parametrize("page", pages.names())
def test_named_files_exist(page):
    named = re.findall(
        r"(?<![\w/.-])(?:configs|launch|gkd|examples|docs|benchmarks|tests)/[\w/.-]+\.(?:gin|sh|py|md)",
        pages.read(page),
    )
    missing = [name for name in named if not (REPOSITORY / name).is_file()]
    assert not missing


@pytest.mark.parametrize("page", pages.names())
def test_dotted_names_exist(page):
    """`gkd.distill.losses` and the like are modules, or names in modules."""
    for name in re.findall(r"`(gkd(?:\.\w+)+)", pages.prose(page)):
        parts = name.split(".")
        module = next((n for n in range(len(parts), 0, -1) if _source(parts[:n]) is not None), 0)
        assert module > 1, f"{page}: {name}: no such module"
        if module < len(parts):
            text = _source(parts[:module])
            is_there = re.search(rf"\b{parts[module]}\b", text)
            assert is_there, f"{page}: {name}: no such name in {'.'.join(parts[:module])}"


def _source(parts):
    path = REPOSITORY.joinpath(*parts)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.read_text()
    return None


def test_every_block_has_a_language_that_a_test_looks_at():
    blocks = [block for page in pages.names() for block in pages.blocks(page)]
    wrong = [
        f"{b.page}:{b.line}: {b.language!r}" for b in blocks if b.language not in pages.LANGUAGES
    ]
    assert not wrong and len(blocks) > 40


def test_the_readme_is_short_and_links_to_every_page():
    lines = pages.read("README.md").splitlines()
    assert len(lines) <= 130
    linked = {target.partition("#")[0] for target in pages.links("README.md")}
    pages_of_docs = {name for name in pages.names() if name.startswith("docs/")}
    assert pages_of_docs <= linked
    assert {"RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"} <= linked
