"""Adapts line breaks and indentation of texts to a vocabulary, by one rule for all texts.

T5's sentencepiece has no line breaks: training, references, few-shot prompts and `infer` use one
line. ByT5's bytes have them all: texts stay unchanged. A vocabulary with some of them (an added
token "\\n") keeps those.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from gkd.vocabularies.tensorflow_host import tf

_CHARACTERS = "\t\n\f\r"  # with the space, the white space of both Python's re and RE2
_RUNS = ("  ", "   ", "    ")
_LETTERS = "ae01"  # several, as a vocabulary need not have each


@dataclasses.dataclass(frozen=True)
class WhiteSpaceRule:
    """The white space that a vocabulary can represent.

    Attributes:
      kept: the representable ones of tab, newline, form feed and carriage return.
      runs: true if several spaces differ from one.
    """

    kept: str
    runs: bool

    @property
    def one_line(self) -> bool:
        """True if only single spaces between words are representable."""
        return not (self.kept or self.runs)

    @property
    def _replaced(self) -> str | None:
        """The regular expression of white space that becomes one space; None for no such."""
        if self.one_line:
            return rf"[{_CHARACTERS} ]+"
        lost = "".join(c for c in _CHARACTERS if c not in self.kept)
        return f"[{lost}]" if lost else None

    def fit(self, text: str) -> str:
        """Replaces white space that the vocabulary cannot represent; idempotent.

        >>> WhiteSpaceRule(kept="", runs=False).fit(" def f():\\n\\treturn 1\\n")
        'def f(): return 1'
        """
        if self._replaced is not None:
            text = re.sub(self._replaced, " ", text)
        return text.strip(" ") if self.one_line else text

    def fit_tensor(self, text: Any) -> Any:
        """Applies `fit` to a string tensor of any shape."""
        if self._replaced is not None:
            text = tf.strings.regex_replace(text, self._replaced, " ")
        return tf.strings.regex_replace(text, "^ +| +$", "") if self.one_line else text


ONE_LINE = WhiteSpaceRule(kept="", runs=False)


def rule_of(vocabulary: Any) -> WhiteSpaceRule:
    """Determines the rule of a vocabulary by encoding test strings.

    Args:
      vocabulary: a seqio vocabulary.

    Returns:
      The rule: white space is kept if it encodes differently from a space, without the unknown
      token.
    """

    def represents(white_space: str) -> bool:
        return any(_differs(vocabulary, letter, white_space) for letter in _LETTERS)

    kept = "".join(character for character in _CHARACTERS if represents(character))
    return WhiteSpaceRule(kept, any(map(represents, _RUNS)))


def _differs(vocabulary: Any, letter: str, white_space: str) -> bool:
    """True if white space between two letters encodes differently from a space."""
    ids = list(vocabulary.encode(f"{letter}{white_space}{letter}"))
    return vocabulary.unk_id not in ids and ids != list(vocabulary.encode(f"{letter} {letter}"))
