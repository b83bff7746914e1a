"""The vocabulary of the arithmetic task."""

import sentencepiece

from gkd.synthetic import arithmetic, train_vocabulary


def test_shipped_vocabulary_is_what_the_script_trains():
    shipped = train_vocabulary.PATH.read_bytes()
    assert train_vocabulary.trained_vocabulary() == shipped
    pieces = sentencepiece.SentencePieceProcessor(model_proto=shipped)
    assert pieces.vocab_size() <= 64
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
    text = "Tom has 17 coins, finds 4."
    assert pieces.encode(text, out_type=str) == (
        ["▁Tom", "▁has", "▁1", "7", "▁coins", ",", "▁finds", "▁4", "."]
    )
    assert pieces.encode("11 - 2 = 9 #### 9", out_type=str) == [
        "▁1",
        "1",
        "▁-",
        "▁2",
        "▁=",
        "▁9",
        "▁####",
        "▁9",
    ]
    for problem in arithmetic.problems("test", 100, digits=3):
        for text in (problem.input, problem.target):
            assert 2 not in pieces.encode(text)
            assert pieces.decode(pieces.encode(text)) == text
