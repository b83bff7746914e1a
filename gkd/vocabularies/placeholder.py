"""Stands in for T5's vocabulary where only its size and special ids matter: in plans."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Iterator

from gkd.vocabularies.tensorflow_host import seqio

LOG = logging.getLogger(__name__)
T5_IDS = 32100
_WORD = 3
_allowed = contextvars.ContextVar("placeholder_allowed", default=False)


class PlaceholderVocabulary(seqio.PassThroughVocabulary):
    """Ids without pieces: 0 pads, 1 ends a sequence, 2 is unknown, as in T5; every word is id 3."""

    @property
    def unk_id(self) -> int:
        """The id of an unknown piece."""
        return 2

    def _encode(self, s: str) -> list[int]:
        return [_WORD] * len(s.split())  # about as many as sentencepiece's, in a known place


@contextlib.contextmanager
def placeholders() -> Iterator[None]:
    """Lets `vocabularies.t5` return a placeholder, inside the context, where no file is named."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def placeholder() -> PlaceholderVocabulary | None:
    """Makes a vocabulary of T5's 32,100 ids; None outside of `placeholders`.

    >>> with placeholders():
    ...     placeholder().vocab_size
    32100
    """
    if not _allowed.get():
        return None
    LOG.warning("no vocabulary is named: planned for the %d ids of T5's", T5_IDS)
    return PlaceholderVocabulary(size=T5_IDS, eos_id=1)
