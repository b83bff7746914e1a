"""Gemma's sentencepiece model, tokenizer.model, with added tokens, as transformers' slow tokenizer.

It has the few methods of the library `tokenizers` that a vocabulary needs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from gkd.errors import InvalidFile
from gkd.files.lfs_pointers import refuse_lfs_pointer
from gkd.vocabularies.tokenizer_files import AddedToken, TokenizerFiles


class SentencePieceTokenizer:
    """A sentencepiece model whose added tokens are matched first."""

    def __init__(self, files: TokenizerFiles):
        """Reads the model.

        Args:
          files: description of a folder with `sentencepiece_bpe`.

        Raises:
          InvalidFile: the file is no sentencepiece model.
        """
        import sentencepiece

        path = files.sentencepiece_bpe
        refuse_lfs_pointer(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            size = self._model.get_piece_size()
        except Exception as error:  # sentencepiece raises different things for one cause
            raise InvalidFile(f"{path} is not a sentencepiece model ({error})") from error
        control = [i for i in range(size) if self._model.is_control(i) or self._model.is_unknown(i)]
        named = [AddedToken(i, self._model.id_to_piece(i), special=True) for i in control]
        self._added = {token.content: token for token in (*named, *files.added)}
        self._by_id = {token.id: token for token in self._added.values()}
        self._bos = self._model.bos_id()
        longest_first = sorted(filter(None, self._added), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        size = self._model.get_piece_size()
        pieces = self._model.id_to_piece(list(range(size)))
        ids = {piece: i for i, piece in enumerate(pieces)}
        return ids | {content: token.id for content, token in self._added.items()}

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Returns the id of every piece."""
        return self._ids

    def token_to_id(self, text: str) -> int | None:
        """Returns the id of a piece; None if it is none."""
        return self._ids.get(text)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encodes a text, after BOS if special tokens are added."""
        ids = [self._bos] if add_special_tokens and self._bos >= 0 else []
        segments = [part for part in self._split.split(text) if part]
        for i, segment in enumerate(segments):
            token = self._added.get(segment)
            if token is not None:
                ids.append(token.id)
                continue
            before, after = (self._added.get(part) for part in _beside(segments, i))
            if before is not None and before.rstrip:
                segment = segment.lstrip()
            if after is not None and after.lstrip:
                segment = segment.rstrip()
            ids += self._model.encode(segment)
        return ids

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Encodes several texts."""
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decodes ids, added tokens as they are."""
        texts: list[str] = []
        between: list[int] = []

        def close() -> None:
            pieces: Any = self._model.id_to_piece(between)
            texts.append(_joined(pieces))
            between.clear()

        for token_id in ids:
            token = self._by_id.get(token_id)
            if token is None:
                between.append(token_id)
                continue
            close()
            if not (skip_special_tokens and token.special):
                texts.append(token.content)
        close()
        return "".join(texts)


def _beside(segments: list[str], i: int) -> tuple[str, str]:
    return (segments[i - 1] if i else "", segments[i + 1] if i + 1 < len(segments) else "")


def _joined(pieces: Sequence[str]) -> str:
    """The text of pieces; adjacent byte pieces are decoded together."""
    parts: list[bytes] = []
    for piece in pieces:
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        parts.append(bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode())
    return b"".join(parts).decode(errors="replace")
