"""Vocabularies of Hugging Face folders: pieces or bytes with added tokens.

A text is split as the `T5Tokenizer` and `ByT5Tokenizer` of transformers do. Pieces and ids are
those that the checkpoint was trained with. `tokenizers_vocabulary` reads the other kind of folder.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from gkd.vocabularies.tensorflow_host import seqio, tf
from gkd.vocabularies.tokenizer_files import AddedToken, TokenizerFiles

_UNDERLINE = "▁"  # sentencepiece's mark of the start of a word


class FolderVocabulary(seqio.Vocabulary):
    """The base of all kinds: pieces by id, and seqio's TensorFlow interface through Python.

    Attributes:
      files: description of the folder's tokenizer files.
    """

    def __init__(self, files: TokenizerFiles, extra_ids: int = 0):
        """Stores the description.

        Args:
          files: description of the folder's tokenizer files.
          extra_ids: number of sentinels among the ids.
        """
        super().__init__(extra_ids=extra_ids)
        self.files = files

    @property
    def vocab_size(self) -> int:
        """Number of ids: the largest id plus 1."""
        return len(self.pieces())

    @property
    def _base_vocab_size(self) -> int:
        return self.vocab_size

    def pieces(self) -> Sequence[str | None]:
        """Returns the piece of every id; None for an id without a piece."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts to token ids, without EOS."""
        return [self._encode(text) for text in texts]

    def _known(self, ids: Any) -> list[int]:
        pieces = self.pieces()
        return [i for i in map(int, ids) if 0 <= i < len(pieces) and pieces[i] is not None]

    def _encode_tf(self, s: Any) -> Any:
        def encode(text: Any) -> Any:
            return tf.constant(self._encode(text.numpy().decode()), tf.int32)

        tokens = tf.py_function(encode, [s], tf.int32)
        tokens.set_shape([None])
        return tokens

    def _decode_tf(self, ids: Any) -> Any:
        return tf.py_function(lambda row: self._decode(row.numpy().tolist()), [ids], tf.string)

    def __eq__(self, other: Any) -> bool:
        return type(other) is type(self) and other.files == self.files


class AddedTokensVocabulary(FolderVocabulary):
    """Pieces or bytes with added tokens that are matched first, as in transformers 4.

    A text is split at the added tokens, the longest first, and each segment between them is encoded
    by itself. `a < b` with the added token `<` is `a `, `<` and ` b`, and each segment starts a
    word.
    """

    def __init__(self, base: Any, files: TokenizerFiles, tokens: Sequence[AddedToken]):
        """Prepares the matching of added tokens.

        Args:
          base: vocabulary of the segments between added tokens, without sentinels.
          files: description of the folder's tokenizer files.
          tokens: the added tokens, including sentinels.
        """
        super().__init__(files, sum(token.sentinel is not None for token in tokens))
        self._base = base
        self._tokens = {token.content: token for token in tokens}
        self._ids = {token.id: token.content for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def eos_id(self) -> int:
        """Id of the end of sequence, from the base."""
        return self._base.eos_id

    @property
    def unk_id(self) -> int:
        """Id of the unknown token, from the base."""
        return self._base.unk_id

    @functools.cached_property
    def _pieces(self) -> tuple[str | None, ...]:
        if isinstance(self._base, seqio.ByteVocabulary):
            known = [f"<byte id {i}>" for i in range(self._base.vocab_size)]
        else:
            known = self._base.tokenizer.id_to_piece(list(range(self._base.vocab_size)))
        pieces: list[str | None] = [*known]
        pieces += [None] * (max(self._ids) + 1 - len(pieces))
        for token_id, content in self._ids.items():
            pieces[token_id] = content
        return tuple(pieces)

    def pieces(self) -> Sequence[str | None]:
        """Returns the base's pieces, overridden and extended by the added tokens."""
        return self._pieces

    def _encode(self, s: str) -> list[int]:
        legacy = self.files.legacy or isinstance(self._base, seqio.ByteVocabulary) or not s
        if not legacy:
            s = s.replace(_UNDERLINE, " ")
            s = _UNDERLINE + s if self.files.add_prefix_space else s
        ids: list[int] = []
        marks: list[bool] = []  # true for ids of special tokens in the text itself
        for segment in self._segments(s):
            token = self._tokens.get(segment)
            segment_ids = [token.id] if token else self._between(segment, legacy)
            ids += segment_ids
            marks += [token is not None and token.special] * len(segment_ids)
        if not legacy and len(ids) > 1 and ids[0] == self._underline and marks[1]:
            return ids[1:]
        return ids

    def _between(self, text: str, legacy: bool) -> list[int]:
        """Encodes a segment between added tokens.

        A piece that equals an added token has that token's id, as in transformers: sentencepiece's
        normalisation may have produced it (`｛` becomes `{`), or it is inside a longer word.
        """
        if isinstance(self._base, seqio.ByteVocabulary):
            return self._base.encode(text)
        plain = self._base.tokenizer if legacy else self._plain
        pieces = plain.encode(text, out_type=str) if legacy else self._without_prefix(text)
        return [
            self._tokens[piece].id if piece in self._tokens else plain.piece_to_id(piece)
            for piece in pieces
        ]

    def _segments(self, text: str) -> list[str]:
        """Splits a text into added tokens and the segments between them, none empty."""
        segments = [segment for segment in self._split.split(text) if segment]
        for i, segment in enumerate(segments):
            token = self._tokens.get(segment)
            if token is None:
                continue
            before = segments[i - 1] if i else ""
            after = segments[i + 1] if i + 1 < len(segments) else ""
            if token.rstrip and after:
                segments[i + 1] = after.lstrip()
            if token.lstrip and before:
                segments[i - 1] = before.rstrip()
            if token.single_word and before and before[-1] != " ":
                segments[i - 1], segments[i] = segments[i - 1] + segment, ""
            elif token.single_word and after and after[0] != " ":
                segments[i], segments[i + 1] = "", segment + segments[i + 1]
        return [segment for segment in segments if segment]

    def _without_prefix(self, text: str) -> list[str]:
        """Pieces of a text that starts a word only after a space (transformers' legacy=False)."""
        if not text.startswith((_UNDERLINE, " ")):
            return self._plain.encode(text, out_type=str)
        return self._plain.encode(self.files.unk + text, out_type=str)[self._unk_length :]

    @functools.cached_property
    def _plain(self) -> Any:
        from sentencepiece import sentencepiece_model_pb2

        no_prefix = sentencepiece_model_pb2.NormalizerSpec(add_dummy_prefix=False)
        path = self._base.sentencepiece_model_file
        return seqio.SentencePieceVocabulary(path, 0, no_prefix).tokenizer

    @functools.cached_property
    def _unk_length(self) -> int:
        return len(self._plain.encode(self.files.unk))

    @functools.cached_property
    def _underline(self) -> int:
        return self._plain.piece_to_id(_UNDERLINE)

    def _decode(self, ids: Sequence[int]) -> str:
        segments: list[str] = []
        between: list[int] = []
        is_bytes = isinstance(self._base, seqio.ByteVocabulary)

        def close() -> None:
            text = self._base.decode(between) if between else ""
            segments.extend([text] if text else [])
            between.clear()

        control = {self.pad_id, self.eos_id, self.unk_id}
        for token_id in self._known(ids):
            if token_id in self._ids and token_id not in control:
                close()
                segments.append(self._ids[token_id])
            else:
                between.append(token_id)
        close()
        return ("" if is_bytes else " ").join(segments)

    def __getstate__(self) -> dict[str, Any]:
        """The state without cached properties: gin copies vocabularies deeply."""
        cached = ("_pieces", "_plain", "_unk_length", "_underline")
        return {name: value for name, value in self.__dict__.items() if name not in cached}
