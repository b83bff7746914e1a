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


class Composing:
    """A vocabulary whose tokens change what was decoded before them."""

    pad_id, eos_id, vocab_size = 0, 1, 10
    texts = {
        (2,): "a", (2, 3): "a\ufffd", (2, 3, 4): "aé b",
        (6,): "ab", (6, 7): "a\ufffd", (6, 7, 8): "abc",
    }  # fmt: skip

    def decode(self, ids):
        return self.texts[tuple(ids)]


@pytest.mark.parametrize(
    "tokens, texts", [([2, 3, 4], ["a", "", "é b"]), ([6, 7, 8], ["ab", "", "c"])]
)
def test_a_part_of_a_character_adds_nothing_and_no_text_is_given_twice(tokens, texts):
    assert token_texts(Composing(), tokens) == texts
