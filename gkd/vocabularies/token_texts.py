"""The text that each token adds to a decoded sequence, in any vocabulary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from gkd.vocabularies.vocabularies import decode_tokens

END = "</s>"


def token_texts(vocabulary: Any, tokens: Sequence[int]) -> list[str]:
    """Splits the text of a sequence among its tokens, by decoding every beginning of it.

    Args:
      vocabulary: a seqio vocabulary.
      tokens: token ids of one sequence.

    Returns:
      One text per token. Those before the end of sequence join to the decoded text; a token that
      is only part of a character adds nothing, and the one that completes it the character. An id
      that ends outputs is its own piece, T5's `</s>`.

    >>> from gkd.vocabularies.vocabularies import byte_level
    >>> token_texts(byte_level(), [68, 198, 191, 69, 1])
    ['A', '', 'ü', 'B', '</s>']
    """
    begins = decode_tokens(vocabulary, [tokens[: i + 1] for i in range(len(tokens))])
    whole = begins[-1] if begins else ""
    ends = {vocabulary.eos_id: END}
    if hasattr(vocabulary, "end_ids"):
        ends = {i: vocabulary.pieces()[i] for i in vocabulary.end_ids}
    texts, done = [], 0
    for token, text in zip(tokens, begins, strict=True):
        # What an incomplete character is decoded to is no beginning of the whole text.
        known = max(done, len(os.path.commonprefix([text, whole])))
        texts.append(ends.get(token, whole[done:known]))
        done = known
    return texts
