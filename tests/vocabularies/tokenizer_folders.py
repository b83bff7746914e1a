"""Folders of small Hugging Face tokenizers."""

import json

CONTROL = {0: "<pad>", 1: "</s>", 2: "<unk>"}


def token(content, **flags):
    kinds = ("lstrip", "rstrip", "single_word", "special")
    return {"content": content} | dict.fromkeys(kinds, False) | flags


def folder_of(path, pieces=None, tokens=(), first=32100, **config):
    """A folder with a sentencepiece model and tokens after its ids, as transformers 4 writes it."""
    decoder = {str(first + i): one for i, one in enumerate(tokens)}
    decoder |= {str(i): token(text, special=True) for i, text in CONTROL.items()}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100} | config
    (path / "tokenizer_config.json").write_text(
        json.dumps({**config, "added_tokens_decoder": decoder})
    )
    if pieces is not None:
        (path / "spiece.model").symlink_to(pieces)
    return str(path)
