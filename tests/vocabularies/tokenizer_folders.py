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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = {256: "<|endoftext|>", 257: "<|im_start|>", 258: "<|im_end|>", 259: "<|begin|>"}


def byte_bpe(path, begins=False, ends=None, first=(), **config):
    """A decoder-only model's folder: id 0 is '!', and character c up to '~' has id ord(c) − 33.

    Args:
      first: tokens before all others, as in T5's family ("<pad>", "</s>").
      begins: the tokenizer adds <|begin|>, id 259, before a text.
      ends: eos_token_id of generation_config.json.
      **config: entries of tokenizer_config.json; pad and EOS are one token unless named.
    """
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, processors

    path.mkdir(exist_ok=True)
    alphabet = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = tokenizers.models.BPE({piece: i for i, piece in enumerate(alphabet)}, [])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*first, *SPECIAL.values()])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 259)]
        )
    tokenizer.save(str(path / "tokenizer.json"))
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": "<|begin|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(names | config))
    if ends is not None:
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return str(path)
