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


def unigram(path, pieces, **changes):
    """A tokenizer.json of the given pieces, as transformers 5 writes a T5's."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    model = tokenizers.models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 2)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(CONTROL.values()))
    tokenizer.enable_truncation(2)
    raw = json.loads(tokenizer.to_str()) | changes
    (path / "tokenizer.json").write_text(json.dumps(raw))
    return str(path)
