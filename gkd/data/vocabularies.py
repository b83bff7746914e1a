"""Vocabularies: T5's sentencepiece from a file, bytes, and the small one of the arithmetic task."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from gkd.data.tensorflow_host import seqio

ENVIRONMENT = "GKD_VOCABULARY"
_ARITHMETIC = pathlib.Path(__file__).with_name("arithmetic.model")


def t5(path: str | None = None, extra_ids: int = 100) -> Any:
    """T5's sentencepiece: 32000 pieces and 100 sentinels, 32100 usable ids.

    Args:
      path: the sentencepiece model file; by default what the environment's GKD_VOCABULARY names.
      extra_ids: sentinels added after the pieces, as T5 does.

    Returns:
      A seqio vocabulary.

    Raises:
      FileNotFoundError: if no path is given or nothing is there.
      ValueError: if the file is not a sentencepiece model, or its special ids are not T5's.
    """
    path = path or os.environ.get(ENVIRONMENT)
    if not path:
        raise FileNotFoundError(
            f"no T5 vocabulary: set {ENVIRONMENT} or vocabularies.t5.path to a sentencepiece "
            "model file (spiece.model of a T5 checkpoint)"
        )
    return sentencepiece(path, extra_ids)


def arithmetic() -> Any:
    """The small sentencepiece shipped with the package, for the arithmetic task only."""
    return sentencepiece(str(_ARITHMETIC), extra_ids=0)


def byte_level(extra_ids: int = 0) -> Any:
    """UTF-8 bytes, ByT5's vocabulary: pad 0, eos 1, unk 2, byte b is id b + 3.

    Args:
      extra_ids: sentinels added after the bytes.
    """
    return seqio.ByteVocabulary(extra_ids=extra_ids)


def sentencepiece(path: str, extra_ids: int = 0) -> Any:
    """The vocabulary of a sentencepiece model file whose pad, eos and unk are T5's 0, 1 and 2.

    Args:
      path: the file.
      extra_ids: sentinels added after the pieces.

    Raises:
      FileNotFoundError, ValueError: as `t5`.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"vocabulary {path} does not exist: set {ENVIRONMENT} or vocabularies.t5.path to a "
            "sentencepiece model file"
        )
    vocabulary = seqio.SentencePieceVocabulary(path, extra_ids)
    try:
        ids = (vocabulary.tokenizer.pad_id(), vocabulary.eos_id, vocabulary.unk_id)
    except Exception as error:  # sentencepiece and protobuf raise different things for one cause
        raise ValueError(f"vocabulary {path} is not a sentencepiece model ({error})") from error
    if ids != (0, 1, 2):
        raise ValueError(f"vocabulary {path} has pad, eos, unk ids {ids}; T5 needs (0, 1, 2)")
    return vocabulary


def valid_ids(vocabulary: Any, table_size: int) -> Bool[np.ndarray, " vocabulary"]:
    """Which rows of a model's table are usable output ids.

    Args:
      vocabulary: a seqio vocabulary.
      table_size: rows of the model's embedding table, e.g. 32128.

    Returns:
      bool [table_size]: false for pad and for ids that the vocabulary does not have.

    Raises:
      ValueError: if the table has fewer rows than the vocabulary has ids.
    """
    if table_size < vocabulary.vocab_size:
        raise ValueError(
            f"the model's table has {table_size} rows, the vocabulary {vocabulary.vocab_size} ids: "
            "give the model a table at least as large, or choose another vocabulary"
        )
    ids = np.arange(table_size)
    return (ids != vocabulary.pad_id) & (ids < vocabulary.vocab_size)


def same_vocabulary(first: Any, second: Any) -> str | None:
    """Compare two vocabularies piece by piece.

    Args:
      first: a seqio vocabulary, e.g. the student's.
      second: another, e.g. the teacher's.

    Returns:
      None if each id means the same in both, else one line that names the first difference.
    """
    if first.vocab_size != second.vocab_size:
        return f"one has {first.vocab_size} ids, the other {second.vocab_size}"
    if first.eos_id != second.eos_id or first.unk_id != second.unk_id:
        return (
            f"one has eos and unk ids {first.eos_id}, {first.unk_id}, "
            f"the other {second.eos_id}, {second.unk_id}"
        )
    for index, (one, other) in enumerate(zip(_pieces(first), _pieces(second), strict=True)):
        if one != other:
            return f"id {index} is {one!r} in one and {other!r} in the other"
    return None


def fingerprint(vocabulary: Any) -> str:
    """SHA-256 over what every id stands for: what a checkpoint remembers of its vocabulary."""
    digest = hashlib.sha256()
    for piece in _pieces(vocabulary):
        digest.update(piece.encode() + b"\0")
    return digest.hexdigest()


def _pieces(vocabulary: Any) -> list[str]:
    ids = range(vocabulary.vocab_size)
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.tokenizer.id_to_piece(list(ids))
    return [f"<byte id {index}>" for index in ids]


def is_byte_level(vocabulary: Any) -> bool:
    """Whether ids are UTF-8 bytes, so that no file describes them."""
    return isinstance(vocabulary, seqio.ByteVocabulary)


def sentencepiece_file(vocabulary: Any) -> str | None:
    """The sentencepiece model that a vocabulary was read from; None for bytes."""
    return None if is_byte_level(vocabulary) else vocabulary.sentencepiece_model_file


def encode_texts(vocabulary: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of many texts, without EOS: what seqio's tokenize gives, many times faster.

    Args:
      vocabulary: a seqio vocabulary.
      texts: the texts.

    Returns:
      One list of ids a text.
    """
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.tokenizer.encode(list(texts))
    return [vocabulary.encode(text) for text in texts]


def decode_tokens(vocabulary: Any, tokens: Any) -> list[str]:
    """Texts of rows of token ids: each stops at its first EOS; pad and unusable ids are dropped.

    Args:
      vocabulary: a seqio vocabulary.
      tokens: integers [rows, length], a NumPy or JAX array or nested lists.

    Returns:
      One text a row.
    """
    texts = []
    for row in tokens.tolist() if hasattr(tokens, "tolist") else tokens:
        usable = [i for i in row if i != vocabulary.pad_id and i < vocabulary.vocab_size]
        texts.append(vocabulary.decode(usable))  # seqio stops at EOS
    return texts
