"""The byte-level vocabulary and templates of small tasks."""

from gkd.vocabularies import vocabularies

BYTES = vocabularies.byte_level()
TEMPLATES = [
    ("Q: {question}", "{why} So {answer}."),
    ("{question} Why?", "{why}"),
    ("Say {{it}}.", "{answer}"),
]
