"""Rows of token ids as models read and write them: prompts, targets, their ends and their padding.

In T5's family EOS ends prompts as it ends targets. A decoder-only model continues its prompt: it
begins with the tokenizer's BOS, if it has one, and does not end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gkd.errors import InvalidValue
from gkd.vocabularies.vocabularies import decode_tokens, encode_texts, end_ids


def ends_prompts(vocabulary: Any) -> bool:
    """Returns True if EOS ends prompts too, as in T5's family."""
    return getattr(vocabulary, "ends_prompts", True)


def begin_ids(vocabulary: Any) -> tuple[int, ...]:
    """Returns the ids before every prompt: BOS, or none."""
    return getattr(vocabulary, "begin_ids", ())


def encode_prompts(vocabulary: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encodes prompts with the ids around them: T5's EOS, or the BOS of a decoder-only model.

    A text that writes its own BOS, as chat templates do, gets no second one.

    Args:
      vocabulary: a seqio vocabulary.
      texts: the prompts.

    Returns:
      One list of ids per prompt, of any length.

    >>> from gkd.vocabularies.vocabularies import byte_level
    >>> encode_prompts(byte_level(), ["AB"])
    [[68, 69, 1]]
    """
    rows = encode_texts(vocabulary, texts)
    if ends_prompts(vocabulary):
        return [[*row, vocabulary.eos_id] for row in rows]
    begin = list(begin_ids(vocabulary))
    return [row if row[: len(begin)] == begin else begin + row for row in rows]


def encode_targets(vocabulary: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encodes targets through the id that ends them."""
    return [[*row, vocabulary.eos_id] for row in encode_texts(vocabulary, texts)]


def encode_options(
    vocabulary: Any, texts: Sequence[str], after_text: bool = True
) -> list[list[int]]:
    """Encodes the options of a question, whose log-likelihood is compared.

    T5's are whole targets. A decoder-only model has read no end of its prompt: after plain text an
    option is the next word, and its end is not scored.

    Args:
      vocabulary: a seqio vocabulary.
      texts: the options.
      after_text: false after a chat's turn, which an option begins without a space.
    """
    if ends_prompts(vocabulary):
        return encode_targets(vocabulary, texts)
    return encode_texts(vocabulary, [continued(vocabulary, text, after_text) for text in texts])


def continued(vocabulary: Any, text: str, after_text: bool = True) -> str:
    """Returns a text as it continues a plain prompt: after a space, except in T5's family.

    Tokenizers such as Llama 2's put a space before every text themselves.
    """
    spaced = not after_text or text[:1].isspace() or ends_prompts(vocabulary)
    return text if spaced or getattr(vocabulary, "adds_space", False) else f" {text}"


def shortened_prompt(vocabulary: Any, row: Any, length: int) -> Any:
    """Truncates a prompt.

    T5's keeps its first tokens and ends with EOS. A decoder-only prompt loses its middle: the start
    holds BOS, the system text and the instruction, the end a few-shot prompt's question and the
    start of the assistant's turn, which the output continues.

    Args:
      vocabulary: a seqio vocabulary.
      row: ids of `encode_prompts`, a list or an array.
      length: greatest length.

    Source: Bai et al., "LongBench" (2023), cuts the middle of long prompts for the same reason.

    >>> from gkd.vocabularies.vocabularies import byte_level
    >>> shortened_prompt(byte_level(), [68, 69, 70, 1], 3)
    [68, 69, 1]
    """
    if len(row) <= length:
        return row
    if ends_prompts(vocabulary):
        return [*row[: length - 1], vocabulary.eos_id]
    start = length // 2
    return [*row[:start], *row[len(row) - (length - start) :]]


def decode_prompts(vocabulary: Any, tokens: Any) -> list[str]:
    """Decodes rows of prompts without their padding and BOS; ends of a chat's turns stay.

    Args:
      vocabulary: a seqio vocabulary.
      tokens: integers [rows, length], a NumPy or JAX array or nested lists.
    """
    if ends_prompts(vocabulary):
        return decode_tokens(vocabulary, tokens)
    begin, texts = list(begin_ids(vocabulary)), []
    for row in tokens.tolist() if hasattr(tokens, "tolist") else tokens:
        known = [i for i in row if i != vocabulary.pad_id]
        known = known[len(begin) :] if known[: len(begin)] == begin else known
        texts.append(vocabulary.decode_ids(known))
    return texts


def ended(vocabulary: Any, tokens: Sequence[int]) -> bool:
    """Checks if an output ends by itself, so was not truncated."""
    return bool(tokens) and tokens[-1] in end_ids(vocabulary)


def special_ids(vocabulary: Any) -> dict[str, Any]:
    """Returns the ids that a model must share: `padding`, `end`, and `ends`, all that end outputs.

    >>> from gkd.vocabularies.vocabularies import byte_level
    >>> special_ids(byte_level())
    {'padding': 0, 'end': 1, 'ends': (1,)}
    """
    ends = end_ids(vocabulary)
    return {"padding": int(vocabulary.pad_id), "end": int(ends[0]), "ends": ends}


def check_special_ids(name: str, model_ids: Any, vocabulary: Any) -> None:
    """Checks that a model and a vocabulary agree in padding and ends.

    Args:
      name: name of the model, for the message.
      model_ids: `gkd.models.interface.SpecialIds` of the model.
      vocabulary: a seqio vocabulary.

    Raises:
      InvalidValue: rows would be padded or end differently in the two.
    """
    wanted = special_ids(vocabulary)
    found = {key: getattr(model_ids, key) for key in wanted if hasattr(model_ids, key)}
    if not found.get("ends", True):
        found["ends"] = (model_ids.end,)
    differing = [key for key, value in found.items() if value != wanted[key]]
    if differing:
        key = differing[0]
        path = getattr(vocabulary, "path", "the vocabulary")
        raise InvalidValue(
            f"{name} has {key} id {found[key]}, but {path} {wanted[key]}: T5 needs a vocabulary "
            "with pad 0 and end of sequence 1, and any other model that of its own family"
        )
