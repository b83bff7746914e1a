"""A sentencepiece learnt from files: T5's special ids, the text comes back, errors in one line."""

import gzip
import json

import pytest
import sentencepiece

from gkd.data.train_sentencepiece import main, trained_sentencepiece

SENTENCE = "the green house stands near a small river where two old boats wait for morning"
WORDS = SENTENCE.split()


@pytest.fixture
def file(tmp_path):
    rows = [
        {"en": " ".join(WORDS[i % 7 :]), "de": " ".join(reversed(WORDS[: 5 + i % 9])), "other": "ж"}
        for i in range(60)
    ]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


def test_the_library_reads_it_with_t5s_special_ids(file, tmp_path):
    output = tmp_path / "new" / "vocabulary.model"
    main([str(output), "28", "en,de", file])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(output))
    assert pieces.vocab_size() == 28
    assert (pieces.pad_id(), pieces.eos_id(), pieces.unk_id(), pieces.bos_id()) == (0, 1, 2, -1)
    text = "the old boats stand near a green river"
    assert pieces.decode(pieces.encode(text)) == text
    assert 2 in pieces.encode("ж"), "only the fields that were named are learnt from"
    assert output.read_bytes() == trained_sentencepiece([file], ["en", "de"], 28)


def test_what_cannot_be_learnt_is_one_clear_line(file):
    with pytest.raises(ValueError, match="5000 pieces cannot be learnt from .*rows.jsonl.gz"):
        trained_sentencepiece([file], ["en"], 5000)
    with pytest.raises(ValueError, match="rows.jsonl.gz:1: no field 'fr'"):
        trained_sentencepiece([file], ["fr"], 28)
    with pytest.raises(SystemExit, match="gkd: error: 3 arguments"):
        main(["x.model", "28", "en"])
