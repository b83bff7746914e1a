"""Vocabularies that a folder of transformers describes beyond its sentencepiece model.

Two kinds, both seqio vocabularies: pieces (or bytes) with added tokens, split as transformers'
`T5Tokenizer` and `ByT5Tokenizer` split them, and whatever a tokenizer.json holds, by the library
`tokenizers`. Ids, not only pieces, are those that the checkpoint was trained with.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from gkd.errors import InvalidFile
from gkd.vocabularies.tensorflow_host import seqio, tf
from gkd.vocabularies.tokenizer_files import AddedToken, TokenizerFiles

_UNDERLINE = "▁"  # sentencepiece's mark of a word's start


class FolderVocabulary(seqio.Vocabulary):
    """What both kinds share: known pieces, and seqio's TensorFlow interface by way of Python.

    Attributes:
      files: the folder that describes the vocabulary.
    """

    def __init__(self, files: TokenizerFiles, extra_ids: int = 0):
        """Args: files: the description; extra_ids: sentinels among the ids."""
        super().__init__(extra_ids=extra_ids)
        self.files = files

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self.pieces())

    @property
    def _base_vocab_size(self) -> int:
        return self.vocab_size

    def pieces(self) -> Sequence[str | None]:
        """The piece of every id; None for an id that stands for nothing."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, without EOS."""
        return [self._encode(text) for text in texts]

    def _known(self, ids: Any) -> list[int]:
        pieces = self.pieces()
        return [i for i in map(int, ids) if i < len(pieces) and pieces[i] is not None]

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
    """Pieces or bytes, and tokens that are looked for first, as transformers 4 does it.

    A text is split at the added tokens, the longest first; what lies between is encoded by itself.
    `a < b` with `<` added is `a `, `<` and ` b`, and each part starts a word.
    """

    def __init__(self, base: Any, files: TokenizerFiles, tokens: Sequence[AddedToken]):
        """Prepares.

        Args:
          base: the vocabulary of the parts between, without sentinels.
          files: the description.
          tokens: the added tokens, sentinels included.
        """
        super().__init__(files, sum(token.sentinel is not None for token in tokens))
        self._base = base
        self._tokens = {token.content: token for token in tokens}
        self._ids = {token.id: token.content for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def eos_id(self) -> int:
        """Of the base."""
        return self._base.eos_id

    @property
    def unk_id(self) -> int:
        """Of the base."""
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
        """The base's pieces, then the added tokens."""
        return self._pieces

    def _encode(self, s: str) -> list[int]:
        legacy = self.files.legacy or isinstance(self._base, seqio.ByteVocabulary) or not s
        if not legacy:
            s = s.replace(_UNDERLINE, " ")
            s = _UNDERLINE + s if self.files.add_prefix_space else s
        ids: list[int] = []
        marks: list[bool] = []  # whether an id is a special token of the text itself
        for part in self._parts(s):
            token = self._tokens.get(part)
            found = [token.id] if token else self._between(part, legacy)
            ids += found
            marks += [token is not None and token.special] * len(found)
        if not legacy and len(ids) > 1 and ids[0] == self._underline and marks[1]:
            return ids[1:]
        return ids

    def _between(self, text: str, legacy: bool) -> list[int]:
        """Ids of what lies between added tokens.

        A piece that is an added token's text has that token's id, as transformers looks it up: the
        sentencepiece's normalisation may have made it (`｛` is `{`), or it is in a longer word.
        """
        if isinstance(self._base, seqio.ByteVocabulary):
            return self._base.encode(text)
        plain = self._base.tokenizer if legacy else self._plain
        pieces = plain.encode(text, out_type=str) if legacy else self._without_prefix(text)
        return [
            self._tokens[piece].id if piece in self._tokens else plain.piece_to_id(piece)
            for piece in pieces
        ]

    def _parts(self, text: str) -> list[str]:
        """The text's parts, added tokens and what lies between, none empty."""
        parts = [part for part in self._split.split(text) if part]
        for i, part in enumerate(parts):
            token = self._tokens.get(part)
            if token is None:
                continue
            before = parts[i - 1] if i else ""
            after = parts[i + 1] if i + 1 < len(parts) else ""
            if token.rstrip and after:
                parts[i + 1] = after.lstrip()
            if token.lstrip and before:
                parts[i - 1] = before.rstrip()
            if token.single_word and before and before[-1] != " ":
                parts[i - 1], parts[i] = parts[i - 1] + part, ""
            elif token.single_word and after and after[0] != " ":
                parts[i], parts[i + 1] = "", part + parts[i + 1]
        return [part for part in parts if part]

    def _without_prefix(self, text: str) -> list[str]:
        """Pieces of a text that starts no word unless it says so (transformers' legacy=False)."""
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
        parts: list[str] = []
        between: list[int] = []
        is_bytes = isinstance(self._base, seqio.ByteVocabulary)

        def close() -> None:
            text = self._base.decode(between) if between else ""
            parts.extend([text] if text else [])
            between.clear()

        control = {self.pad_id, self.eos_id, self.unk_id}
        for token_id in self._known(ids):
            if token_id in self._ids and token_id not in control:
                close()
                parts.append(self._ids[token_id])
            else:
                between.append(token_id)
        close()
        return ("" if is_bytes else " ").join(parts)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made when needed: gin copies vocabularies deeply."""
        made = ("_pieces", "_plain", "_unk_length", "_underline")
        return {name: value for name, value in self.__dict__.items() if name not in made}


class TokenizersVocabulary(FolderVocabulary):
    """The vocabulary of a tokenizer.json, by the library `tokenizers`."""

    def __init__(self, files: TokenizerFiles):
        """Opens the file.

        Args:
          files: the description, with a tokenizer_json.

        Raises:
          ValueError: the file is damaged, lacks a token that other files name, or its pad and end
            of sequence are not ids 0 and 1.
        """
        super().__init__(files)
        pieces = self.pieces()
        for token in files.added:
            if token.id >= len(pieces) or pieces[token.id] != token.content:
                raise InvalidFile(
                    f"{files.folder}: the tokenizer's files disagree, {token.content!r} has id "
                    f"{token.id} but not in {files.tokenizer_json}: save the tokenizer again"
                )
        self._extra_ids = sum(token.sentinel is not None for token in files.added)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        import tokenizers

        path = self.files.tokenizer_json
        tokenizer = _guarded(path, "is not read", tokenizers.Tokenizer.from_str, path.read_text())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def _pieces(self) -> tuple[str | None, ...]:
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if not ids:
            raise InvalidFile(f"{self.files.tokenizer_json} has no tokens")
        pieces: list[str | None] = [None] * (max(ids.values()) + 1)
        for piece, token_id in ids.items():
            pieces[token_id] = piece
        return tuple(pieces)

    def pieces(self) -> Sequence[str | None]:
        """The piece of every id; None for an id that stands for nothing."""
        return self._pieces

    @property
    def pad_id(self) -> int | None:
        """The id of the padding token."""
        return self._tokenizer.token_to_id(self.files.pad)

    @property
    def eos_id(self) -> int | None:
        """The id of the end of sequence."""
        return self._tokenizer.token_to_id(self.files.eos)

    @property
    def unk_id(self) -> int | None:
        """The id of what has no other."""
        return self._tokenizer.token_to_id(self.files.unk)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, without EOS."""
        encode = functools.partial(self._tokenizer.encode_batch, add_special_tokens=False)
        rows = _guarded(self.files.tokenizer_json, "fails on a text", encode, list(texts))
        return [row.ids for row in rows]

    def _encode(self, s: str) -> list[int]:
        return self.encode_batch([s])[0]

    def _decode(self, ids: Sequence[int]) -> str:
        control = {self.pad_id, self.eos_id}
        kept = [i for i in self._known(ids) if i not in control]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made when needed: gin copies vocabularies deeply."""
        made = ("_pieces", "_tokenizer")
        return {name: value for name, value in self.__dict__.items() if name not in made}


def _guarded(path: Any, trouble: str, function: Any, argument: Any) -> Any:
    """Calls the library; its errors, and its panics, which are no `Exception`, are one line."""
    try:
        return function(argument)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidFile(f"{path} {trouble} by the library tokenizers ({cause})") from error
