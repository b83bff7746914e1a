"""One rule for line breaks and indentation, by vocabulary, for every text that becomes tokens.

T5's sentencepiece has no line breaks: training, references, few-shot prompts and `infer` see one
line. ByT5's bytes have them all: a text stays exactly as it is. A vocabulary with some of them (an
added token "\\n") keeps those.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from gkd.vocabularies.tensorflow_host import tf

_CHARACTERS = "\t\n\f\r"  # with the space: what regular expressions of Python and RE2 agree on
_RUNS = ("  ", "   ", "    ")
_LETTERS = "ae01"  # a vocabulary need not have each


@dataclasses.dataclass(frozen=True)
class WhiteSpaceRule:
    """What of a text's white space a vocabulary can represent.

    Attributes:
      kept: which of tab, newline, form feed and carriage return.
      runs: whether several spaces differ from one.
    """

    kept: str
    runs: bool

    @property
    def one_line(self) -> bool:
        """Whether nothing but single spaces between words is left."""
        return not (self.kept or self.runs)

    @property
    def _replaced(self) -> str | None:
        """The regular expression of what becomes one space; None where nothing does."""
        if self.one_line:
            return rf"[{_CHARACTERS} ]+"
        lost = "".join(c for c in _CHARACTERS if c not in self.kept)
        return f"[{lost}]" if lost else None

    def fit(self, text: str) -> str:
        """The text as the vocabulary can represent it; applied twice it is the same.

        >>> WhiteSpaceRule(kept="", runs=False).fit(" def f():\\n\\treturn 1\\n")
        'def f(): return 1'
        """
        if self._replaced is not None:
            text = re.sub(self._replaced, " ", text)
        return text.strip(" ") if self.one_line else text

    def fit_tensor(self, text: Any) -> Any:
        """`fit` of a string tensor of any shape."""
        if self._replaced is not None:
            text = tf.strings.regex_replace(text, self._replaced, " ")
        return tf.strings.regex_replace(text, "^ +| +$", "") if self.one_line else text


ONE_LINE = WhiteSpaceRule(kept="", runs=False)


def rule_of(vocabulary: Any) -> WhiteSpaceRule:
    """The rule of a vocabulary, found by encoding with it.

    Args:
      vocabulary: a seqio vocabulary.

    Returns:
      The rule: kept is what encodes unlike a space, without the unknown token.
    """

    def represents(white_space: str) -> bool:
        return any(_differs(vocabulary, letter, white_space) for letter in _LETTERS)

    kept = "".join(character for character in _CHARACTERS if represents(character))
    return WhiteSpaceRule(kept, any(map(represents, _RUNS)))


def _differs(vocabulary: Any, letter: str, white_space: str) -> bool:
    """Whether white space between two letters encodes to something of its own."""
    ids = list(vocabulary.encode(f"{letter}{white_space}{letter}"))
    return vocabulary.unk_id not in ids and ids != list(vocabulary.encode(f"{letter} {letter}"))
