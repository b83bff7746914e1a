"""The documentation keeps to standard English of the field, as the code does."""

import re

import pytest

from tests.docs import pages
from tests.plain_english import text_findings

PAGES = [page for page in pages.names() if page != "CHANGELOG.md"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_plain_english(page):
    def blank(block):
        return "\n" * block[0].count("\n")

    text = re.sub(r"^```.*?^```$", blank, pages.read(page), flags=re.DOTALL | re.MULTILINE)
    assert not [f"{page}:{line}: {rule}: {found}" for line, rule, found in text_findings(1, text)]
