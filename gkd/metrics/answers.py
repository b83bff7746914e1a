"""Extracts the stated answer of a text, in words or as an option, for metrics and rewards."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from gkd.metrics.numbers import ANSWER_IS, boxed

Reference = str | Sequence[str]  # a row's reference, or several

_FULL_WIDTH = {0xFF01 + i: chr(0x21 + i) for i in range(94)}
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_EMPHASIS = re.compile(r"\*\*|__|`|</?[a-z]{1,6}>")
_EMPHASISED = re.compile(r"(?<![\w*])([*_]{1,3})(\(?[A-Za-z]\)?\.?)\1(?![\w*])")
_QUOTED = re.compile(r"([\"'“‘$]|\\\()\s*(.*?)\s*([\"'”’$]|\\\))(\.?)", re.DOTALL)

_CHOICE_IS = re.compile(
    rf"{ANSWER_IS.pattern}|####|\b(?:correct|right|best|final)\s+(?:option|choice|letter|one)\s*"
    r"(?:is|are|was|would be|should be|must be|[:=])\s*:?|\bcorrect\s*:|\b(?:option|choice)\s*:"
    r"|\bans\s*[.:]|\b(?:choose|pick|select|go with)\b|\bmy choice is\b",
    re.IGNORECASE,
)
_LEAD = r"[\s\"'“”‘’$:#>~*-]*(?:\\[(\[]\s*)?(?:(?:option|choice|answer|letter|alternative)\s+)*"
_ENDS = (  # text after a bare letter that is an option: "A dog", "A's" and "A.I." are none
    r"\s*(?:$|\n|[)\]}:;!?\"”$<](?!\w)|['’](?!\w)|,(?!\S)|\.(?!\w\b)|\\)|\s+[-–—]\s"
    r"|\s+(?:because|since)\b"
    r"|\s+is\s+(?:(?:the|my|clearly|most|definitely)\s+)*(?:correct|right|best|answer|true|likely)"
)
_LETTER = re.compile(
    rf"{_LEAD}(?:\(\s*([A-Z])\s*\)|\[\s*([A-Z])\s*\]|\{{\s*([A-Z])\s*\}}|([A-Z])(?={_ENDS})"
    r"|((?-i:[B-HJ-Z]))(?=\s+(?-i:[A-Z(])))",  # "B Both", but "A Dog" and "I Robot" are words
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"\s*(?:[,/&]|and\b|or\b|und\b|oder\b)\s*(?:\([A-Za-z]\)|[A-Z](?![\w'’]|\s+[a-z]))"
)
_REJECTED = re.compile(r"\s*(?:is|are|was)(?:\s+not\b|n['’]t\b|\s+(?:wrong|incorrect|false)\b)")


def references_in(target: Reference) -> Sequence[str]:
    """Lists the references of a row.

    Args:
      target: one reference, or several.

    >>> references_in("yes"), references_in(["yes", "yeah"])
    (('yes',), ['yes', 'yeah'])
    """
    return (target,) if isinstance(target, str) else target


def normalised(text: str) -> str:
    """Normalises a text for exact match.

    The text is case-folded and composed (NFC), runs of white space become one space, and white
    space and one full stop at the end are dropped. Punctuation and articles stay: an answer may
    consist of brackets.

    Args:
      text: any text.

    Returns:
      The normalised text.

    >>> normalised("  The  Answer. ")
    'the answer'
    """
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return re.sub(r"[.。]$", "", text).rstrip()


def stated_answer(text: str) -> str:
    """Extracts the answer that a text states: everything after its last `the answer is`.

    `Answer:` and the German `die Antwort ist` and `die Antwort lautet` count too; a text without
    such words is an answer as a whole. Emphasis, quotes and `\\boxed{…}` around the answer are
    dropped, and options become `(b)` in every notation (`B`, `B)`, `(B)`, `(B) Both`).

    Args:
      text: a generated text, or a reference.

    Returns:
      The answer, normalised.

    >>> stated_answer("2 + 2 is even, so the answer is **Yes**."), stated_answer("(B) Both")
    ('yes', '(b)')
    """
    answer = ANSWER_IS.split(text)[-1]
    box = boxed(answer) if "boxed" in answer or "fbox" in answer else None
    answer = _LATEX_TEXT.sub(r"\1", answer if box is None else box)
    answer = _EMPHASIS.sub("", answer).strip()
    quoted = _QUOTED.fullmatch(answer)
    answer = normalised(quoted[2] if quoted and quoted[2] else answer)
    option = re.fullmatch(r"([a-z])[.):]?|\(([a-z])\)(?:[\s.:].*)?", answer)
    return f"({option[1] or option[2]})" if option else answer


def chosen_letter(text: str) -> str | None:
    """Extracts the option that a text chooses: `B`, `(b)`, `B. Both`, `Answer: B`, … give B.

    The option is the letter in the last `\\boxed{…}`, else the one after the last `the answer is`,
    `Answer:`, `the correct option is` or `####`, else the one at the beginning of the text or of
    its last line. The letter must be in parentheses or by itself: `A dog`, `A or B` and
    `(A) is wrong` choose nothing.

    Args:
      text: a generated text, or a reference.

    Returns:
      A capital letter, or None if the text chooses no option or several.

    >>> chosen_letter("The correct option is (b)."), chosen_letter("A or B")
    ('B', None)
    """
    text = text.translate(_FULL_WIDTH)
    box = boxed(text)
    if box is not None:
        return _first_letter(box)
    text = _EMPHASIS.sub("", _EMPHASISED.sub(r"\2", text))
    last_line = text.rstrip().rfind("\n") + 1
    starts = [match.end() for match in _CHOICE_IS.finditer(text)]
    for start in [*reversed(starts), 0, last_line]:
        letter = _first_letter(text[start : start + 300])
        if letter is not None:
            return letter
    return None


def _first_letter(text: str) -> str | None:
    text = re.sub(r"\\[ ,;:!]|~", " ", _LATEX_TEXT.sub(r"\1", text))
    text = _EMPHASIS.sub("", _EMPHASISED.sub(r"\2", text))
    match = _LETTER.match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    if _ANOTHER.match(rest) or _REJECTED.match(rest):
        return None
    return next(group for group in match.groups() if group).upper()


def is_right(target: Any, answer: Any) -> bool:
    """Compares an answer with the reference's; a reference without one (None) never matches.

    Args:
      target: answer of the reference.
      answer: answer of the generated text.
    """
    return target is not None and target == answer


def agree(answer_of: Callable[[str], Any], target: str, prediction: str) -> bool:
    """Compares the answer of a prediction with that of the reference.

    Args:
      answer_of: function of a text to its answer, e.g. `stated_answer`.
      target, prediction: the reference and the generated text.

    Returns:
      True if both have the same answer.
    """
    return is_right(answer_of(target), answer_of(prediction))
