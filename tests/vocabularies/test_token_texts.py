"""The texts of tokens join to the text, whatever the vocabulary."""

import pytest

from gkd.vocabularies.token_texts import token_texts
from gkd.vocabularies.vocabularies import byte_level, sentencepiece


@pytest.mark.parametrize("text", ["Ünïcode €5 😀 end", "a", ""])
def test_bytes_join_to_characters(text):
    vocabulary = byte_level()
    tokens = vocabulary.encode(text)
    texts = token_texts(vocabulary, [*tokens, vocabulary.eos_id])
    assert "".join(texts[:-1]) == text and texts[-1] == "</s>"
    assert len(texts) == len(tokens) + 1


def test_pieces_of_a_sentencepiece_model_keep_their_spaces(shared):
    path = shared / "data" / "t5_vocab" / "spiece.model"
    vocabulary = sentencepiece(str(path))
    tokens = vocabulary.encode("The quick brown fox, über alles.")
    texts = token_texts(vocabulary, tokens)
    assert "".join(texts) == "The quick brown fox, über alles." and texts[:2] == ["The", " quick"]


def test_no_token_has_no_text():
    assert token_texts(byte_level(), []) == []
