"""Licence and citation are what they say they are."""

import hashlib

import yaml

import gkd
from tests.paths import REPOSITORY

# SHA-256 of the licence's text as the Apache Software Foundation publishes it (LICENSE-2.0.txt).
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_licence_is_apache_2_with_the_copyright_of_the_authors():
    text = (REPOSITORY / "LICENSE").read_text()
    line = "Copyright 2026 The GKD Authors"
    assert text.count(line) == 1
    published = text.replace(line, "Copyright [yyyy] [name of copyright owner]")
    assert hashlib.sha256(published.encode()).hexdigest() == APACHE_2


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    # What the Citation File Format 1.2.0 requires.
    assert {"authors", "cff-version", "message", "title"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert citation["version"] == gkd.__version__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Agarwal", "Vieillard", "Zhou", "Stanczyk", "Ramos", "Geist", "Bachem",
    ]  # fmt: skip
    assert paper["url"].endswith("/2306.13649") and paper["year"] == 2024
