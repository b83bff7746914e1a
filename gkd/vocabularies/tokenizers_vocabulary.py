"""The vocabulary of a tokenizer.json, or of Gemma's sentencepiece, with its special tokens.

There are two families, which differ in their special ids. T5's pads with id 0, and EOS, id 1, ends
prompts and targets. In every other one (Qwen, Llama, SmolLM2, Gemma) id 0 is a token, and the
padding token often ends outputs too: rows are padded with −1, which is no id, prompts begin with
the tokenizer's BOS if it has one, and several ids may end an output.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

from gkd.errors import InvalidFile, UserError
from gkd.vocabularies.chat_templates import render_chat
from gkd.vocabularies.hugging_face_vocabulary import FolderVocabulary
from gkd.vocabularies.sentencepiece_tokenizer import SentencePieceTokenizer
from gkd.vocabularies.tokenizer_files import GENERATION_FILE, IMAGE_TOKEN, TokenizerFiles

NO_TOKEN = -1  # pads rows where every id may be a token
T5_IDS = (0, 1)  # pad, and end of sequence
# Classes of transformers in which add_bos_token of tokenizer_config.json counts.
_WITH_BOS_OPTION = ("Llama", "CodeLlama", "Gemma")
_REPLY = "zxqreplyqxz"
_SPACES = ("▁", "Ġ")  # a space within a piece, of sentencepiece and of byte-level BPE


class TokenizersVocabulary(FolderVocabulary):
    """The vocabulary of a tokenizer.json (or tokenizer.model), read on the host."""

    def __init__(self, files: TokenizerFiles):
        """Opens the file.

        Args:
          files: description of the folder's tokenizer files, with a tokenizer_json or a
            sentencepiece_bpe.

        Raises:
          ValueError: the file is damaged, lacks a token that other files name, or no file names the
            end of a sequence.
        """
        super().__init__(files)
        pieces = self.pieces()
        for token in files.added:
            known = token.id < len(pieces) and pieces[token.id] == token.content
            if not known:
                raise InvalidFile(
                    f"{files.folder}: the tokenizer's files disagree, {token.content!r} has id "
                    f"{token.id} but not in {self.path}: save the tokenizer again"
                )
        self._extra_ids = sum(token.sentinel is not None for token in files.added)

    @property
    def path(self) -> Any:
        """Path of the file that holds the pieces."""
        return self.files.tokenizer_json or self.files.sentencepiece_bpe

    @functools.cached_property
    def _tokenizer(self) -> Any:
        if self.files.tokenizer_json is None:
            return SentencePieceTokenizer(self.files)
        return _opened(str(self.files.tokenizer_json), self.files.tokenizer_json.read_text())

    @functools.cached_property
    def _pieces(self) -> tuple[str | None, ...]:
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if not ids:
            raise InvalidFile(f"{self.path} has no tokens")
        pieces: list[str | None] = [None] * (max(ids.values()) + 1)
        for piece, token_id in ids.items():
            pieces[token_id] = piece
        return tuple(pieces)

    def pieces(self) -> Sequence[str | None]:
        """Returns the piece of every id; None for an id without a piece."""
        return self._pieces

    @functools.cached_property
    def named_ids(self) -> tuple[int | None, int | None]:
        """Ids of the padding and EOS tokens that the files name; None for a token without one."""
        return tuple(map(self._tokenizer.token_to_id, (self.files.pad, self.files.eos)))

    @property
    def ends_prompts(self) -> bool:
        """True for T5's family: EOS ends prompts too, id 0 is padding, and there is no BOS."""
        bos = self.files.bos and self._tokenizer.token_to_id(self.files.bos)
        return self.named_ids == T5_IDS and not self.begin_ids and bos in (None, "")

    @property
    def pad_id(self) -> int:
        """Id that pads rows: 0 in T5's family, else −1, which is no token."""
        return T5_IDS[0] if self.ends_prompts else NO_TOKEN

    @property
    def eos_id(self) -> int:
        """Id that is appended to targets, the first of `end_ids`."""
        return self.end_ids[0]

    @property
    def unk_id(self) -> int | None:
        """Id of the unknown token; None without one."""
        return self._tokenizer.token_to_id(self.files.unk)

    @functools.cached_property
    def begin_ids(self) -> tuple[int, ...]:
        """Ids before every prompt: those that the tokenizer itself adds, its BOS or none."""
        bos = self.files.bos and self._tokenizer.token_to_id(self.files.bos)
        option = self.files.add_bos
        if option is not None and str(self.files.tokenizer_class).startswith(_WITH_BOS_OPTION):
            return (bos,) if option and bos is not None else ()
        alone, whole = (
            _ids(self._tokenizer.encode("a", add_special_tokens=added)) for added in (False, True)
        )
        places = range(len(whole) - len(alone) + 1)
        first = next((i for i in places if whole[i : i + len(alone)] == alone), 0)
        return tuple(whole[:first])

    @functools.cached_property
    def adds_space(self) -> bool:
        """True if the tokenizer puts a space before every text, as Llama 2's does."""
        first = self._raw_ids(["a"])[0][:1]
        return bool(first) and (self._pieces[first[0]] or "").startswith(_SPACES)

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an output, by generation_config.json, else the EOS token.

        The first is appended to targets: the one that ends the assistant's turn in the chat
        template, else the EOS token, else the first of the file.

        Raises:
          InvalidFile: no file names an id of the vocabulary.
        """
        if self.ends_prompts:
            return T5_IDS[1:]
        known = [i for i in self.files.end_ids if self._known([i])]
        eos = self.named_ids[1]
        ids = known or ([] if eos is None else [eos])
        if not ids:
            raise InvalidFile(
                f"{self.files.folder}: no end of sequence: name eos_token in tokenizer_config.json "
                f"as a token of {self.path}, or eos_token_id in {GENERATION_FILE}"
            )
        first = next((i for i in (*self.turn_ids[:1], eos) if i in ids), ids[0])
        return tuple(dict.fromkeys([first, *ids]))

    @functools.cached_property
    def turn_ids(self) -> tuple[int, ...]:
        """The ids after the assistant's reply in the chat template; none for T5's family."""
        if self.files.chat_template is None or self.ends_prompts:
            return ()
        chat = [("user", "a"), ("assistant", _REPLY)]
        messages = [{"role": role, "content": text} for role, text in chat]
        try:
            text = render_chat(self.files.chat_template, messages)
        except UserError:  # shown where the template is used
            return ()
        return tuple(self._raw_ids([text.partition(_REPLY)[2]])[0])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts to token ids, without BOS and EOS; special tokens in texts are parsed."""
        return self._raw_ids(texts)

    def _raw_ids(self, texts):
        encode = functools.partial(self._tokenizer.encode_batch, add_special_tokens=False)
        return [_ids(row) for row in _guarded(self.path, "fails on a text", encode, list(texts))]

    def _encode(self, s: str) -> list[int]:
        return self.encode_batch([s])[0]

    def decode_ids(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Decodes ids as transformers does without clean_up_tokenization_spaces.

        Args:
          ids: token ids; those beyond the vocabulary, and padding, are left out.
          skip_special_tokens: leave out special tokens.
        """
        return self._tokenizer.decode(self._known(ids), skip_special_tokens=skip_special_tokens)

    def _decode(self, ids: Sequence[int]) -> str:
        if self.ends_prompts:
            return self.decode_ids([i for i in ids if i not in T5_IDS])
        return self.decode_ids(list(itertools.takewhile(lambda i: i not in self.end_ids, ids)))

    def __getstate__(self) -> dict[str, Any]:
        """The state without cached properties: gin copies vocabularies deeply."""
        cached = (
            "_pieces", "_tokenizer", "adds_space", "begin_ids", "end_ids", "named_ids", "turn_ids",
        )  # fmt: skip
        return {name: value for name, value in self.__dict__.items() if name not in cached}


@functools.lru_cache(maxsize=4)
def _opened(path: str, content: str) -> Any:
    """The tokenizer of a file, which is not changed any more: vocabularies share it."""
    import tokenizers

    content = _without_image_token(content)
    tokenizer = _guarded(path, "is not read", tokenizers.Tokenizer.from_str, content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _ids(encoding: Any) -> list[int]:
    return encoding if isinstance(encoding, list) else encoding.ids


def _without_image_token(content: str) -> str:
    """The text of a tokenizer.json without the placeholder of images."""
    if IMAGE_TOKEN not in content:
        return content
    raw = json.loads(content)
    kept = [token for token in raw["added_tokens"] if token["content"] != IMAGE_TOKEN]
    return json.dumps(raw | {"added_tokens": kept})


def _guarded(path: Any, trouble: str, function: Any, argument: Any) -> Any:
    """Calls the library, and turns its errors and panics (no `Exception`) into one-line errors."""
    try:
        return function(argument)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidFile(f"{path} {trouble} by the library tokenizers ({cause})") from error
