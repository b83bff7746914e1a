"""Checks that docstrings, comments and messages of gkd/ keep to standard English of the field."""

import ast
import io
import re
import tokenize

import pytest

from gkd.configuration.gin_files import REPOSITORY
from tests.plain_english import text_findings

GKD = REPOSITORY / "gkd"
# Noun clauses and genitives without a head: "What …", "Whether …", "of the run".
CLAUSE = re.compile(r"(What|How|Whether|Where|When|Who|Whose|Which|Why|Of|From)\b", re.IGNORECASE)
ENTRY = re.compile(r"^ {2,}([a-z_][\w, *]*): +(.*)$")
SECTIONS = ("Args:", "Attributes:", "Raises:")


def findings(source: str) -> list[tuple[int, str, str]]:
    """Finds violations in a module's docstrings, comments and messages.

    Args:
      source: text of a Python module.

    Returns:
      (line, rule, text) of each.
    """
    tree, found = ast.parse(source), []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            line = getattr(node, "lineno", 1)
            if CLAUSE.match(text):
                found.append((line, "a noun clause", text.splitlines()[0]))
            found += ((line, "a noun clause", entry) for entry in _entries(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            found += text_findings(node.lineno, node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found += text_findings(token.start[0], token.string)
    return sorted(found)


def _entries(docstring):
    """Entries of Args, Attributes and Raises that begin with a noun clause."""
    section = ""
    for line in docstring.splitlines():
        if line.strip().endswith(":") and not line.startswith("  "):
            section = line.strip()
        entry = ENTRY.match(line)
        if section in SECTIONS and entry and CLAUSE.match(entry.group(2)):
            yield line.strip()


def _all_findings():
    for path in sorted(GKD.rglob("*.py")):
        for line, rule, text in findings(path.read_text(encoding="utf-8")):
            name = path.relative_to(GKD).as_posix()
            yield name, f"gkd/{name}:{line}: {rule}: {text}"


def test_the_text_of_every_module_is_plain_english():
    wrong = [text for _, text in _all_findings()]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ('"""What a run holds."""', "a noun clause"),
        (
            'def f(seed):\n    """Runs.\n\n    Args:\n      seed: of the run.\n    """',
            "a noun clause",
        ),
        ('"""Prints tokens a second."""', "'a' for 'per'"),
        ("# The loss is .65 then.", "a number without its 0"),
        ('x = "the teacher knows no ids"', "a verb of people"),
        ("# rows that were cut off", "a term of ours"),
    ],
)
def test_each_habit_is_found(source, rule):
    assert [found for _, found, _ in findings(source)] == [rule]


def test_plain_english_passes():
    source = (
        '"""Computes 0.65 tokens per second.\n\nArgs:\n  seed: PRNG seed of the run.\n"""\n'
        "x = values[0].5 if False else '.gin'  # `.5` is code\n".replace("values[0].5", "0")
    )
    assert findings(source) == []
