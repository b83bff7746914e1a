"""Reads the tokenizer files beside a checkpoint's weights within bounds, and compares them.

A folder of transformers describes one tokenizer in up to five files; this module reads the ids in
all of them and refuses contradictions. `vocabularies` builds a vocabulary from the description, and
`gkd.checkpoints` copies the files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile
from gkd.files.json_files import Field, check_fields, check_value, read_json, shown
from gkd.files.lfs_pointers import refuse_lfs_pointer
from gkd.vocabularies.chat_templates import (
    LEGACY_FILE,
    TEMPLATE_FILE,
    ChatTemplate,
    read_chat_template,
)

VOCABULARY_FILE = "spiece.model"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
SENTENCEPIECE_BPE_FILE = "tokenizer.model"  # Gemma's sentencepiece, which is no T5's
GENERATION_FILE = "generation_config.json"  # the ids that end an output
# All files of a tokenizer, which are copied unchanged.
TOKENIZER_FILES = (
    VOCABULARY_FILE,
    TOKENIZER_FILE,
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    SENTENCEPIECE_BPE_FILE,
    TEMPLATE_FILE,
    LEGACY_FILE,
    "vocab.json",
    "merges.txt",
)
# Files of other kinds of tokenizers, which are not read.
_OTHER_FILES = (
    "vocab.json", "merges.txt", "vocab.txt", "sentencepiece.bpe.model", "spm.model", "tekken.json",
)  # fmt: skip
# Gemma 3's placeholder of images, whose id lies beyond the table of the models of text alone.
IMAGE_TOKEN = "<image_soft_token>"
_SPECIAL = ("bos", "eos", "pad", "unk")
_LARGEST_ID = 10_000_000
_ID = Field(kinds=(int,), least=0, most=_LARGEST_ID, required=True)
_CONTENT = Field(kinds=(str,), least=1, required=True)
_FLAG = Field(kinds=(bool,))
_FLAGS = ("lstrip", "rstrip", "single_word", "special")
_TOKEN = {"content": _CONTENT} | dict.fromkeys(_FLAGS, _FLAG)
_CONFIG = {
    "tokenizer_class": Field(kinds=(str,), none=True),
    "extra_ids": Field(kinds=(int,), least=0, most=1_000_000, none=True),
    "legacy": Field(kinds=(bool,), none=True),
    "add_prefix_space": Field(kinds=(bool,), none=True),
    "added_tokens_decoder": Field(kinds=(dict,)),
    "add_bos_token": Field(kinds=(bool,), none=True),
    **{f"{name}_token": Field(kinds=(str, dict), none=True) for name in _SPECIAL},
}


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched in a text before the rest is split into pieces.

    Attributes:
      id: id of the token.
      content: text of the token.
      lstrip, rstrip: true if the match includes white space to its left and right.
      single_word: true if it matches only as a word of its own.
      special: true if it marks structure rather than text.
    """

    id: int
    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    special: bool = False

    @property
    def sentinel(self) -> int | None:
        """The number k of T5's sentinel <extra_id_k>; None for other tokens."""
        match = re.fullmatch(r"<extra_id_(\d{1,6})>", self.content)
        return None if match is None else int(match.group(1))


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The description of a tokenizer by the files of one folder.

    Attributes:
      folder: path of the folder.
      names: names out of `TOKENIZER_FILES` that exist.
      sentencepiece: path of the sentencepiece model, or None.
      tokenizer_json: path of tokenizer.json, or None.
      added: added tokens, by ascending id, without Gemma 3's for images.
      tokenizer_class: class name in transformers; None if no file names it.
      extra_ids: number of sentinels; None if no file gives it.
      legacy, add_prefix_space: the two options of T5's tokenizer in transformers.
      bos, pad, eos, unk: texts of these tokens; no bos if no file names it.
      add_bos: True or False where tokenizer_config.json decides if prompts begin with bos.
      end_ids: ids that end an output by generation_config.json; empty without them.
      chat_template: the chat template, or None.
      sentencepiece_bpe: path of a sentencepiece model that is no T5's (Gemma), or None.
      other: name of a tokenizer file of a kind that is not read, or None.
    """

    folder: Any
    names: tuple[str, ...] = ()
    sentencepiece: Any | None = None
    tokenizer_json: Any | None = None
    added: tuple[AddedToken, ...] = ()
    tokenizer_class: str | None = None
    extra_ids: int | None = None
    legacy: bool = True
    add_prefix_space: bool = True
    pad: str = "<pad>"
    eos: str = "</s>"
    unk: str = "<unk>"
    bos: str | None = None
    add_bos: bool | None = None
    end_ids: tuple[int, ...] = ()
    chat_template: ChatTemplate | None = None
    sentencepiece_bpe: Any | None = None
    other: str | None = None

    @property
    def is_empty(self) -> bool:
        """True if no file describes a vocabulary."""
        files = (self.sentencepiece, self.tokenizer_json, self.sentencepiece_bpe, self.other)
        return not self.is_bytes and not any(files)

    def sentinels_of(self, family: str) -> int:
        """Counts the sentinels that the files give or list, else those of the family.

        Args:
          family: 't5' (100 sentinels by default), or another family (none).
        """
        if self.extra_ids is not None:
            return self.extra_ids
        listed = sum(token.sentinel is not None for token in self.added)
        return listed or (100 if family == "t5" else 0)

    @property
    def is_bytes(self) -> bool:
        """True if the ids are UTF-8 bytes, as in ByT5."""
        return str(self.tokenizer_class).startswith("ByT5")


def read_tokenizer(
    folder: Any,
    tokenizer_class: str | None = None,
    sentencepiece_names: Sequence[str] = (VOCABULARY_FILE,),
) -> TokenizerFiles:
    """Reads the description of a tokenizer from the files of a folder.

    Args:
      folder: path of the folder (pathlib or epath).
      tokenizer_class: class named in the checkpoint's config.json, used if tokenizer_config.json
        names none.
      sentencepiece_names: possible names of the sentencepiece model, by priority.

    Returns:
      The description; without files if the folder has none.

    Raises:
      ValueError: a file is damaged, or two files contradict each other.
    """
    names = tuple(name for name in TOKENIZER_FILES if (folder / name).exists())
    models = [folder / name for name in sentencepiece_names if (folder / name).exists()]
    if models:  # also where the file is only copied
        refuse_lfs_pointer(models[0])
    config, tokens = {}, []
    if CONFIG_FILE in names:
        path = folder / CONFIG_FILE
        config = read_json(path, dict)
        check_fields(config, _CONFIG, path)
        tokens += _of_config(config.get("added_tokens_decoder", {}), path)
    if TOKENIZER_FILE in names:
        path = folder / TOKENIZER_FILE
        tokens += _of_tokenizer(read_json(path, dict), path)
    if ADDED_TOKENS_FILE in names:
        path = folder / ADDED_TOKENS_FILE
        for content, token_id in read_json(path, dict).items():
            tokens.append(_token({"id": token_id, "content": content}, path))
    special = _special_texts(config, folder)
    own = {name: special[name] for name in special if special[name] is not None}
    bpe = folder / SENTENCEPIECE_BPE_FILE
    return TokenizerFiles(
        folder=folder,
        names=names,
        sentencepiece=models[0] if models else None,
        tokenizer_json=folder / TOKENIZER_FILE if TOKENIZER_FILE in names else None,
        added=_merged([token for token in tokens if token.content != IMAGE_TOKEN], folder),
        tokenizer_class=config.get("tokenizer_class") or tokenizer_class,
        extra_ids=config.get("extra_ids"),
        legacy=config.get("legacy") is not False,
        add_prefix_space=config.get("add_prefix_space") is not False,
        add_bos=config.get("add_bos_token"),
        end_ids=_end_ids(folder / GENERATION_FILE),
        chat_template=_chat_template(folder, config, own),
        sentencepiece_bpe=bpe if SENTENCEPIECE_BPE_FILE in names else None,
        other=next((name for name in _OTHER_FILES if (folder / name).exists()), None),
        **own,
    )


def _special_texts(config: Mapping[str, Any], folder: Any) -> dict[str, str | None]:
    """Texts of the special tokens, by tokenizer_config.json, else by special_tokens_map.json."""
    path, others = folder / SPECIAL_TOKENS_FILE, {}
    if path.exists():
        others = read_json(path, dict)
        fields = {f"{name}_token": Field(kinds=(str, dict), none=True) for name in _SPECIAL}
        check_fields(others, fields, path)
    texts = {}
    for name in _SPECIAL:
        places = ((config, folder / CONFIG_FILE), (others, path))
        found = (_text(values.get(f"{name}_token"), where) for values, where in places)
        texts[name] = next((text for text in found if text is not None), None)
    return texts


def _end_ids(path: Any) -> tuple[int, ...]:
    """The ids of eos_token_id in generation_config.json: one, several, or none."""
    if not path.exists():
        return ()
    ids = read_json(path, dict).get("eos_token_id")
    if ids is None:
        return ()
    ids = ids if isinstance(ids, list) else [ids]
    for one in ids:
        check_value(one, _ID, f"{path}: eos_token_id")
    return tuple(dict.fromkeys(ids))


def _chat_template(folder: Any, config: Mapping[str, Any], texts: Mapping[str, str]) -> Any:
    found = read_chat_template(folder, config.get("chat_template"))
    if found is None:
        return None
    return ChatTemplate(*found, tuple((f"{name}_token", text) for name, text in texts.items()))


def _of_config(decoder: Mapping[str, Any], path: Any) -> Iterable[AddedToken]:
    for key, token in decoder.items():
        if not re.fullmatch(r"[0-9]{1,9}", key) or not isinstance(token, dict):
            raise InvalidFile(f"{path}: added_tokens_decoder has {shown(key)}, not an id")
        yield _token({**token, "id": int(key)}, f"{path}: added_tokens_decoder {key}")


def _of_tokenizer(raw: Mapping[str, Any], path: Any) -> Iterable[AddedToken]:
    tokens = raw.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        raise InvalidFile(f"{path}: added_tokens is {shown(tokens)}: a list of objects is needed")
    return [_token(token, f"{path}: added_tokens") for token in tokens]


def _token(raw: Mapping[str, Any], where: Any) -> AddedToken:
    check_fields(raw, {"id": _ID, **_TOKEN}, where)
    _check_text(raw["content"], where)
    flags = {name: raw.get(name, False) for name in _FLAGS}
    return AddedToken(raw["id"], raw["content"], **flags)


def _text(value: Any, path: Any) -> str | None:
    """The text of a special token, which is given as a text or as an object, or not at all."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return None
    check_value(value, _CONTENT, f"{path}: a special token")
    return value


def _check_text(text: str, where: Any) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidFile(f"{where}: {text!r} is no valid text ({error.reason})") from error


def _merged(tokens: Sequence[AddedToken], folder: Any) -> tuple[AddedToken, ...]:
    """Merges tokens of the same id, which must agree; the first description is kept."""
    by_id: dict[int, AddedToken] = {}
    ids: dict[str, int] = {}
    for token in tokens:
        known = by_id.setdefault(token.id, token)
        if known.content != token.content:
            raise InvalidFile(
                f"{folder}: the tokenizer's files disagree, id {token.id} is {known.content!r} in "
                f"one and {token.content!r} in another: save the tokenizer again"
            )
        if ids.setdefault(token.content, token.id) != token.id:
            raise InvalidFile(
                f"{folder}: the tokenizer's files give {token.content!r} the ids "
                f"{ids[token.content]} and {token.id}: save the tokenizer again"
            )
    return tuple(by_id[token_id] for token_id in sorted(by_id))
