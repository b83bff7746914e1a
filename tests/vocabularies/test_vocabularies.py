"""Vocabularies: known ids of T5's sentencepiece, `valid_ids`, comparison, decoding."""

import numpy as np
import pytest

from gkd.synthetic import train_vocabulary
from gkd.vocabularies import vocabularies
from tests import hub_server


@pytest.fixture(scope="module")
def t5(shared):
    return vocabularies.t5(str(shared / "data/t5_vocab/spiece.model"))


def test_t5_ids_are_those_of_the_released_model(t5):
    # The ids are recorded in the vocabulary's README.
    ids = [13959, 1566, 12, 2968, 10, 466, 19, 207, 5]
    assert vocabularies.encode_texts(t5, ["translate English to German: That is good."]) == [ids]
    assert vocabularies.encode_texts(t5, ["<extra_id_0> <extra_id_99>"]) == [[32099, 32000]]
    assert t5.vocab_size == 32100


def test_usable_ids_of_t5(t5):
    valid = vocabularies.valid_ids(t5, 32128)
    assert valid.dtype == bool
    assert np.flatnonzero(~valid).tolist() == [0, *range(32100, 32128)]


def test_usable_ids_of_the_small_vocabularies():
    valid = vocabularies.valid_ids(vocabularies.arithmetic(), 64)
    assert np.flatnonzero(valid).tolist() == list(range(1, 51))
    assert vocabularies.valid_ids(vocabularies.byte_level(), 384).sum() == 258
    with pytest.raises(ValueError, match="table has 50 rows, the vocabulary 51 ids"):
        vocabularies.valid_ids(vocabularies.arithmetic(), 50)


def test_bytes_are_shifted_by_three():
    vocabulary = vocabularies.byte_level()
    assert vocabularies.encode_texts(vocabulary, ["Hié"]) == [[72 + 3, 105 + 3, 0xC3 + 3, 0xA9 + 3]]
    assert vocabularies.decode_tokens(vocabulary, [[75, 108, 0xC3 + 3, 0xA9 + 3, 1, 80]]) == ["Hié"]


def test_encoding_in_blocks_is_seqios_encoding(t5):
    texts = ["", "Zwei  Katzen\tund 3 {Hunde}.", "<extra_id_1> a", "Ünïcödé ≠ 漢字", " #### 72 "]
    for vocabulary in (t5, vocabularies.byte_level(), vocabularies.arithmetic()):
        expected = [vocabulary.encode_tf(text).numpy().tolist() for text in texts]
        assert vocabularies.encode_texts(vocabulary, texts) == expected


def test_decoding_stops_at_eos_and_drops_what_is_no_text(t5):
    good = [466, 19, 207, 5]  # "That is good."
    rows = [[*good, 1, 466, 0], [0, *good, 0, 0], [*good[:2], 32127, *good[2:], 1], [1, *good, 5]]
    assert vocabularies.decode_tokens(t5, rows[:1]) == ["That is good."]
    assert vocabularies.decode_tokens(t5, rows[1:2]) == ["That is good."]
    assert vocabularies.decode_tokens(t5, np.array(rows[2:3], np.int32)) == ["That is good."]
    assert vocabularies.decode_tokens(t5, rows[3:]) == [""]


def test_comparison_names_the_first_difference(t5, shared, tmp_path):
    small = vocabularies.arithmetic()
    assert vocabularies.same_vocabulary(small, vocabularies.arithmetic()) is None
    assert vocabularies.same_vocabulary(t5, small) == "one has 32100 ids, the other 51"
    model = train_vocabulary.PATH.read_bytes()
    assert model.count(b"cards") >= 1
    path = tmp_path / "other.model"
    path.write_bytes(model.replace(b"cards", b"carts"))
    other = vocabularies.t5(str(path), extra_ids=0)
    # words(): 6 names, has, coins, cards; after pad, eos, unk
    assert vocabularies.same_vocabulary(small, other) == (
        "id 11 is '▁cards' in one and '▁carts' in the other"
    )
    bytes_51 = vocabularies.byte_level()
    assert "one has 259 ids" in vocabularies.same_vocabulary(bytes_51, small)


def test_missing_or_wrong_vocabulary_is_one_line(monkeypatch, tmp_path, shared):
    monkeypatch.delenv("GKD_VOCABULARY", raising=False)
    with pytest.raises(FileNotFoundError, match="set GKD_VOCABULARY"):
        vocabularies.t5()
    monkeypatch.setenv("GKD_VOCABULARY", "/no/such/spiece.model")
    with pytest.raises(FileNotFoundError, match="/no/such/spiece.model does not exist"):
        vocabularies.t5()
    monkeypatch.setenv("GKD_VOCABULARY", str(shared / "data/t5_vocab/spiece.model"))
    assert vocabularies.t5().vocab_size == 32100
    wrong = tmp_path / "wrong.model"
    wrong.write_text("not a model")
    with pytest.raises(ValueError, match="not a sentencepiece model") as error:
        vocabularies.t5(str(wrong))
    assert "\n" not in str(error.value)
    wrong.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="wrong.model is a Git LFS pointer"):
        vocabularies.t5(str(wrong))


def test_the_tokenizer_of_a_model_of_the_hub(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repository").mkdir()
    pieces = (shared / "data/t5_vocab/spiece.model").read_bytes()
    (tmp_path / "repository" / "spiece.model").write_bytes(pieces)
    (tmp_path / "repository" / "model.safetensors").write_bytes(b"not read")
    with hub_server.serve(tmp_path / "cache", monkeypatch) as server:
        server.repositories["google/tiny"] = {"main": tmp_path / "repository"}
        monkeypatch.setenv("GKD_VOCABULARY", "google/tiny")
        assert vocabularies.t5().vocab_size == 32100
        assert server.files == ["spiece.model"]
        (tmp_path / "repository" / "spiece.model").unlink()
        with pytest.raises(FileNotFoundError, match="google/tiny.*has no tokenizer files"):
            vocabularies.t5("google/tiny")
        hub_server.point_to(hub_server.closed_port(), tmp_path / "cache", monkeypatch)
        with pytest.raises(FileNotFoundError, match="^google/other: there is no such folder, and"):
            vocabularies.t5("google/other")
