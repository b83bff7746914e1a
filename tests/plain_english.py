"""Rules of plain English for running text, in code and in documentation."""

import re
from collections.abc import Iterator

TEXT_RULES = {
    "'a' for 'per'": re.compile(
        r"\b(bytes|completions|examples|ids|lines?|numbers?|outputs|rows|samples|seconds|sequences"
        r"|steps|times|tokens|updates|values?|FLOPs?|GFLOP|[kMG]?B|ms) an? "
        r"(batch|cell|chip|device|example|group|host|layer|position|process|prompt|query|row|run"
        r"|sample|second|sequence|slice|step|token|update)\b"
    ),
    "a number without its 0": re.compile(r"(?<![\w.…)\]}*:\\/'\"])\.\d"),
    "a verb of people": re.compile(
        r"\b(says|is said|are said|told|hears?|heard|knows?|knew|speaks?|spoke|judges?|stands|stood"
        r"|learns of)\b"
    ),
    "a term of ours": re.compile(
        r"\b(once and for all|offline teachers?|shared out|one bucket|at best|cut off|exchanges"
        r"|usable|learner|expert|a process is silent)\b"
    ),
}


def text_findings(line: int, text: str) -> Iterator[tuple[int, str, str]]:
    """Finds violations in running text; what stands in backticks is code.

    Args:
      line: number of the text's first line.
      text: any text.

    Yields:
      (line, rule, text) of each.
    """
    without_code = re.sub(r"`[^`]*`", "``", text)
    for number, content in enumerate(without_code.splitlines()):
        for rule, pattern in TEXT_RULES.items():
            if pattern.search(content):
                yield line + number, rule, content.strip()
