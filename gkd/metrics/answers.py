"""The answer that a generated text states, in words or as an option, for metrics and rewards."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from gkd.metrics.numbers import ANSWER_IS, boxed

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
_ENDS = (  # what follows a bare letter that is an option: "A dog", "A's" and "A.I." are none
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


def normalised(text: str) -> str:
    """The form in which exact match compares texts.

    Case-folded, composed characters (NFC), runs of white space as one space, none at the ends, and
    one full stop at the end dropped. Punctuation and articles stay: an answer may consist of
    brackets.

    Args:
      text: any text.
    """
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return re.sub(r"[.。]$", "", text).rstrip()


def stated_answer(text: str) -> str:
    """The answer that a text states, normalised: all after its last `the answer is`.

    `Answer:`, German's `die Antwort ist` and `die Antwort lautet` count too; a text without such
    words is an answer as a whole. Emphasis, quotes and `\\boxed{…}` around the answer are dropped,
    and an option is `(b)` however it is written (`B`, `B)`, `(B)`, `(B) Both`).

    Args:
      text: a generated text, or a reference.
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
    """The option a text chooses: `B`, `(b)`, `B. Both`, `Answer: B`, `**B**` … all give B.

    It is the letter in the last `\\boxed{…}`, else the one after the last `the answer is`,
    `Answer:`, `the correct option is` or `####`, else the one that the text or its last line begins
    with. It stands in parentheses or by itself: `A dog` chooses nothing, nor do `A or B` and
    `(A) is wrong`.

    Args:
      text: a generated text, or a reference.

    Returns:
      A capital letter, or None where the text chooses no option or several.
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
    """Whether an answer is the reference's; a reference without an answer (None) cannot be met."""
    return target is not None and target == answer


def agree(answer_of: Callable[[str], Any], target: str, prediction: str) -> bool:
    """Whether a prediction's answer is the reference's, for every metric and reward of answers.

    Args:
      answer_of: function of a text to its answer, e.g. `stated_answer`.
      target, prediction: the reference and the generated text.
    """
    return is_right(answer_of(target), answer_of(prediction))
