"""Builds and compares vocabularies: T5's sentencepiece, bytes, and those of models' folders."""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.files import hub
from gkd.files.lfs_pointers import refuse_lfs_pointer
from gkd.vocabularies.hugging_face_vocabulary import AddedTokensVocabulary, FolderVocabulary
from gkd.vocabularies.placeholder import placeholder
from gkd.vocabularies.tensorflow_host import seqio
from gkd.vocabularies.tokenizer_files import (
    GENERATION_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    AddedToken,
    TokenizerFiles,
    read_tokenizer,
)
from gkd.vocabularies.tokenizers_vocabulary import T5_IDS, TokenizersVocabulary

ENVIRONMENT = "GKD_VOCABULARY"
_ARITHMETIC = pathlib.Path(__file__).with_name("arithmetic.model")


def t5(path: str | None = None, extra_ids: int = 100) -> Any:
    """Loads T5's sentencepiece (32000 pieces, 100 sentinels), or the tokenizer of any model.

    Args:
      path: path of the sentencepiece model, or of a checkpoint's folder of any family (see
        `from_folder`), or the name of a model on the Hugging Face Hub; by default the value of the
        environment variable GKD_VOCABULARY.
      extra_ids: number of sentinels after the pieces, used if no file gives it.

    Returns:
      A seqio vocabulary.

    Raises:
      FileNotFoundError: no path is given, or it does not exist.
      ValueError: the file is not a sentencepiece model, or its special ids are not T5's.
    """
    path = path or os.environ.get(ENVIRONMENT)
    if not path and (stand_in := placeholder()):
        return stand_in
    if not path:
        raise MissingFile(
            f"no T5 vocabulary: set {ENVIRONMENT} or vocabularies.t5.path to a sentencepiece "
            "model file (spiece.model of a T5 checkpoint), a checkpoint's folder or the name of a "
            "model on the Hugging Face Hub (google/flan-t5-small)"
        )
    path = _local_tokenizer(path)
    if os.path.isdir(path) or os.path.basename(path) == TOKENIZER_FILE:
        return from_folder(path if os.path.isdir(path) else os.path.dirname(path), extra_ids)
    return sentencepiece(path, extra_ids)


def _local_tokenizer(path: str) -> str:
    """Downloads the tokenizer files of a model of the Hub; returns other paths unchanged."""
    name = hub.parse_hub_name(path)
    if name is None:
        hub.refuse_address(path)
        return path
    try:
        listing = hub.list_files(name)
    except hub.Unreachable:
        found = [hub.cached_folder(name, file) for file in TOKENIZER_FILES]
        folder = next((folder for folder in found if folder is not None), None)
        if folder is None:
            raise
        return str(folder)
    files = [file for file in (*TOKENIZER_FILES, GENERATION_FILE) if file in listing.sizes]
    if not {*files} - {GENERATION_FILE}:
        raise MissingFile(f"{path}: this model of the Hugging Face Hub has no tokenizer files")
    return str(hub.download(name, listing, files))


def from_folder(path: str, extra_ids: int = 100) -> Any:
    """Loads the vocabulary that the tokenizer files of a folder describe.

    Args:
      path: path of a Hugging Face directory or a run directory.
      extra_ids: number of sentinels after the ids of a sentencepiece, used if no file gives it.

    Returns:
      A seqio vocabulary.

    Raises:
      FileNotFoundError: the folder holds no tokenizer.
      ValueError: files are damaged, contradictory or of an unsupported kind; see `from_files`.
    """
    files = read_tokenizer(pathlib.Path(path))
    if files.is_empty:
        raise MissingFile(
            f"vocabulary {path}: the folder holds no tokenizer (spiece.model or {TOKENIZER_FILE})"
        )
    listed = any(token.sentinel is not None for token in files.added)
    return from_files(files, files.sentinels_of("t5") if listed else extra_ids)


def from_files(files: TokenizerFiles, extra_ids: int) -> Any:
    """Builds the vocabulary that tokenizer files describe, including added tokens.

    T5's sentencepiece model without added tokens is read by the library sentencepiece. With added
    tokens, texts are split as in transformers: by tokenizer.json if there is one, else like its
    T5Tokenizer and ByT5Tokenizer. Without a spiece.model it is tokenizer.json, else tokenizer.model
    of any family, see `tokenizers_vocabulary`.

    Args:
      files: description of the files, from `gkd.vocabularies.tokenizer_files.read_tokenizer`.
      extra_ids: number of sentinels after the ids of a sentencepiece, used if the files do not
        give it.

    Returns:
      A seqio vocabulary.

    Raises:
      FileNotFoundError: the files describe no vocabulary.
      ValueError: files are damaged, contradictory or of an unsupported kind, or the special ids of
        a spiece.model are not T5's.
    """
    if files.extra_ids is not None:
        extra_ids = files.extra_ids
    if files.is_bytes:
        base, extra_ids = byte_level(), 0 if files.extra_ids is None else files.extra_ids
    elif files.sentencepiece is not None:
        base = sentencepiece(str(files.sentencepiece))
    elif files.tokenizer_json is not None or files.sentencepiece_bpe is not None:
        return TokenizersVocabulary(files)
    elif files.other:
        raise InvalidFile(
            f"{files.folder} has its tokenizer in {files.other}, which is not read: save it with "
            f"transformers as {TOKENIZER_FILE} or spiece.model, or name a --vocabulary"
        )
    else:
        raise MissingFile(f"{files.folder} holds no tokenizer")
    sentinels = _sentinels(base, extra_ids)
    beyond = [token for token in files.added if not _is_known(token, base, sentinels)]
    if files.sentencepiece is not None and files.tokenizer_json is not None:
        from_json = _checked(TokenizersVocabulary(files))
        if beyond:
            return from_json
        difference = _difference(_pieces(base), _pieces(from_json)[: base.vocab_size])
        if difference:
            raise InvalidFile(
                f"{files.folder}: the tokenizer's files disagree, spiece.model and "
                f"{TOKENIZER_FILE}: {difference}: save the tokenizer again, or remove one of them"
            )
    if beyond:
        special = [
            AddedToken(i, text, special=True)
            for i, text in ((0, files.pad), (1, files.eos), (2, files.unk))
        ]
        added = {token.content for token in files.added}
        others = [token for token in (*special, *sentinels) if token.content not in added]
        return AddedTokensVocabulary(base, files, [*files.added, *others])
    return byte_level() if files.is_bytes else sentencepiece(str(files.sentencepiece), extra_ids)


def _sentinels(base: Any, count: int) -> list[AddedToken]:
    """Lists the sentinels of a base: <extra_id_0> has the last id in T5, the first in ByT5."""
    size = base.vocab_size
    if is_byte_level(base):
        return [AddedToken(size + i, f"<extra_id_{i}>", special=True) for i in range(count)]
    return [
        AddedToken(size + count - 1 - i, f"<extra_id_{i}>", lstrip=True, rstrip=True, special=True)
        for i in range(count)
    ]


def _is_known(token: AddedToken, base: Any, sentinels: Sequence[AddedToken]) -> bool:
    """True if a base has a token anyway: pad, EOS, unknown, or a sentinel."""
    if is_byte_level(base):  # their ids are left out: no byte is matched as a sentinel
        return token.id < 3 or token.sentinel == token.id - base.vocab_size
    if any((token.id, token.content) == (known.id, known.content) for known in sentinels):
        return True
    pieces = base.tokenizer
    if token.id >= base.vocab_size or pieces.id_to_piece(token.id) != token.content:
        return False
    return pieces.is_control(token.id) or pieces.is_unknown(token.id)


def _checked(vocabulary: TokenizersVocabulary) -> TokenizersVocabulary:
    """Refuses a vocabulary unless pad and end of sequence have T5's ids."""
    ids = vocabulary.named_ids
    if ids != T5_IDS:
        files = vocabulary.files
        raise InvalidFile(
            f"vocabulary {vocabulary.path} has ids {ids} for {files.pad} and {files.eos}; T5 needs "
            "pad 0 and end of sequence 1"
        )
    return vocabulary


def arithmetic() -> Any:
    """Loads the small sentencepiece of the package, for the arithmetic task only."""
    return sentencepiece(str(_ARITHMETIC), extra_ids=0)


def byte_level(extra_ids: int = 0) -> Any:
    """Builds ByT5's vocabulary of UTF-8 bytes: pad 0, eos 1, unk 2, byte b has id b + 3.

    Args:
      extra_ids: number of sentinels after the bytes.

    >>> byte_level().encode("AB")
    [68, 69]
    """
    return seqio.ByteVocabulary(extra_ids=extra_ids)


def sentencepiece(path: str, extra_ids: int = 0) -> Any:
    """Loads a sentencepiece model whose pad, eos and unk have T5's ids 0, 1 and 2.

    Args:
      path: path of the model file.
      extra_ids: number of sentinels after the pieces.

    Returns:
      A seqio vocabulary.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file is not a sentencepiece model, or its special ids are not T5's.
    """
    if not os.path.isfile(path):
        raise MissingFile(
            f"vocabulary {path} does not exist: set {ENVIRONMENT} or vocabularies.t5.path to a "
            "sentencepiece model file"
        )
    refuse_lfs_pointer(path)
    vocabulary = seqio.SentencePieceVocabulary(path, extra_ids)
    try:
        ids = (vocabulary.tokenizer.pad_id(), vocabulary.eos_id, vocabulary.unk_id)
    except Exception as error:  # sentencepiece and protobuf raise different things for one cause
        raise InvalidFile(f"vocabulary {path} is not a sentencepiece model ({error})") from error
    if ids != (0, 1, 2):
        raise InvalidFile(f"vocabulary {path} has pad, eos, unk ids {ids}; T5 needs (0, 1, 2)")
    return vocabulary


def valid_ids(vocabulary: Any, table_size: int) -> Bool[np.ndarray, " vocabulary"]:
    """Computes the mask of ids that a model may generate.

    Args:
      vocabulary: a seqio vocabulary.
      table_size: V, number of rows of the model's embedding table, e.g. 32128.

    Returns:
      bool [V], false for T5's pad and for ids that the vocabulary does not have. Where the padding
      token ends outputs, it is true.

    Raises:
      ValueError: the table has fewer rows than the vocabulary has ids.

    ByT5 has 259 ids, of which pad is never generated, in a table of 384 rows:

    >>> int(valid_ids(byte_level(), 384).sum())
    258
    """
    if table_size < vocabulary.vocab_size:
        raise InvalidValue(
            f"the model's table has {table_size} rows, the vocabulary {vocabulary.vocab_size} ids: "
            "give the model a table at least as large, or choose another vocabulary"
        )
    valid = np.zeros(table_size, bool)
    valid[: vocabulary.vocab_size] = [piece is not None for piece in _pieces(vocabulary)]
    if vocabulary.pad_id >= 0:
        valid[vocabulary.pad_id] = False
    return valid


def same_vocabulary(first: Any, second: Any) -> str | None:
    """Compares two vocabularies piece by piece.

    Args:
      first: a seqio vocabulary, e.g. the student's.
      second: another, e.g. the teacher's.

    Returns:
      None if every id has the same piece in both, else one line that names the first difference.
      The ids that end outputs may differ in a family without T5's ids: the task's count.
    """
    if first.vocab_size != second.vocab_size:
        return f"one has {first.vocab_size} ids, the other {second.vocab_size}"
    ids = [f"{each.eos_id}, {each.unk_id}" for each in (first, second)]
    if max(first.pad_id, second.pad_id) >= 0 and ids[0] != ids[1]:
        return f"one has eos and unk ids {ids[0]}, the other {ids[1]}"
    return _difference(_pieces(first), _pieces(second))


def _difference(first: Sequence[str | None], second: Sequence[str | None]) -> str | None:
    """Describes the first id whose pieces differ; None if all are equal."""
    for index, (piece, other) in enumerate(zip(first, second, strict=True)):
        if piece != other and _sentinel_name(piece) != _sentinel_name(other):
            return f"id {index} is {piece!r} in one and {other!r} in the other"
    return None


def _sentinel_name(piece: str | None) -> str | None:
    """Removes the mark of a word's start that seqio writes before sentinels."""
    return piece and re.sub(r"^▁(?=<extra_id_\d+>$)", "", piece)


def fingerprint(vocabulary: Any) -> str:
    """Computes the SHA-256 of all pieces in order, by which checkpoints identify a vocabulary.

    Args:
      vocabulary: a seqio vocabulary.

    Returns:
      64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for piece in _pieces(vocabulary):
        digest.update((piece or "").encode() + b"\0")
    return digest.hexdigest()


def _pieces(vocabulary: Any) -> Sequence[str | None]:
    """The piece of every id; None for an id without a piece."""
    if isinstance(vocabulary, FolderVocabulary):
        return vocabulary.pieces()
    ids = range(vocabulary.vocab_size)
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.tokenizer.id_to_piece(list(ids))
    return [f"<byte id {index}>" for index in ids]


def is_byte_level(vocabulary: Any) -> bool:
    """Returns True if the ids are UTF-8 bytes only, so that no file describes the vocabulary."""
    return isinstance(vocabulary, seqio.ByteVocabulary)


def sentencepiece_file(vocabulary: Any) -> str | None:
    """Returns the path of the sentencepiece model of a vocabulary; None if it has none."""
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return None
    return vocabulary.sentencepiece_model_file


def tokenizer_folder(vocabulary: Any) -> Any:
    """Returns the folder whose tokenizer files describe a vocabulary; None if there is none."""
    return vocabulary.files.folder if isinstance(vocabulary, FolderVocabulary) else None


def encode_texts(vocabulary: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encodes texts to token ids without EOS, like seqio's tokenize but many times faster.

    Args:
      vocabulary: a seqio vocabulary.
      texts: the texts.

    Returns:
      One list of ids per text.
    """
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.tokenizer.encode(list(texts))
    if isinstance(vocabulary, FolderVocabulary):
        return vocabulary.encode_batch(texts)
    return [vocabulary.encode(text) for text in texts]


def decode_tokens(vocabulary: Any, tokens: Any) -> list[str]:
    """Decodes rows of token ids up to the first EOS, dropping pad and ids beyond the vocabulary.

    Args:
      vocabulary: a seqio vocabulary.
      tokens: integers [rows, length], a NumPy or JAX array or nested lists.

    Returns:
      One text per row.

    >>> decode_tokens(byte_level(), [[68, 69, 1, 70], [0, 71, 300, 1]])
    ['AB', 'D']
    """
    texts, ends = [], end_ids(vocabulary)
    for row in tokens.tolist() if hasattr(tokens, "tolist") else tokens:
        known = (i for i in row if i != vocabulary.pad_id and i < vocabulary.vocab_size)
        texts.append(vocabulary.decode(list(itertools.takewhile(lambda i: i not in ends, known))))
    return texts


def end_ids(vocabulary: Any) -> tuple[int, ...]:
    """Returns the ids that end an output; the first is appended to targets.

    >>> end_ids(byte_level())
    (1,)
    """
    return getattr(vocabulary, "end_ids", (vocabulary.eos_id,))
