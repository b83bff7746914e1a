"""Tokenizers of Hugging Face folders: ids as transformers gives them, refusals in one line."""

import copy
import json

import numpy as np
import pytest

from gkd.vocabularies import vocabularies
from gkd.vocabularies.hugging_face_vocabulary import AddedTokensVocabulary
from tests.vocabularies.tokenizer_folders import CONTROL, folder_of, token, unigram


@pytest.fixture(scope="module")
def case(shared):
    folder = shared / "cases/tokenizers/added_tokens"
    if not folder.is_dir():
        pytest.skip(f"needs the shared fixtures: no {folder}")
    return folder


def encoded(vocabulary, text):
    return vocabularies.encode_texts(vocabulary, [text])[0]


def test_added_tokens_have_transformers_ids(case):
    vocabulary = vocabularies.t5(str(case))
    for text, ids in json.loads((case / "ids.json").read_text()).items():
        assert [*encoded(vocabulary, text), 1] == ids, text
        assert vocabulary.encode_tf(text).numpy().tolist() == ids[:-1]
    valid = vocabularies.valid_ids(vocabulary, 32128)
    assert np.flatnonzero(~valid).tolist() == [0, *range(32104, 32128)]
    # The text of transformers' decode, whose end of sequence is left out.
    ids = [3, 9, 32102, 3, 115, 32100, 3, 75, 32101, 32103, 126, 1, 9]
    assert vocabularies.decode_tokens(vocabulary, [ids]) == ["a < b { c } \n new"]
    assert copy.deepcopy(vocabulary) == vocabulary  # gin does this


BRACES = [token("{"), token("}"), token("\n")]
STRIPS = [
    token("<L>", lstrip=True), token("<R>", rstrip=True), token("wrd", single_word=True),
    token("<L>x"), token("ab"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "config", "text", "ids"),
    [  # all by transformers 4.57.6
        (BRACES, {"legacy": False}, "<extra_id_3>}</s><extra_id_3>a", [32096, 32101, 1, 32096, 9]),
        (BRACES, {"legacy": False}, "<extra_id_3>\nworld\nworld\n   ",
         [32096, 7276, 32102, 7276, 32102]),
        (BRACES, {"legacy": False}, "</s> ▁}  }<extra_id_99>  ", [1, 32101, 32101, 32000]),
        (STRIPS, {}, "<R><extra_id_99>Hello   newwrd new",
         [32101, 32000, 8774, 126, 210, 52, 26, 126]),
        (STRIPS, {}, ".<R><L>world</s>  new", [3, 5, 32101, 32100, 296, 1, 126]),
        (STRIPS, {}, "</s>   \n<L>xab<extra_id_99><L>x", [1, 32103, 32104, 32000, 32103]),
        ([token("{"), token("|")], {"legacy": False, "add_prefix_space": False},
         "Helloworlda<unk><extra_id_3>{", [566, 7126, 7276, 9, 2, 32096, 32100]),
        ([token("[SEP]", special=True)], {}, "world\nworld[SEP]<extra_id_3> new  ",
         [296, 296, 32100, 32096, 126]),
        # A piece that is unknown is not the special token; one that is an added token's text is it.
        ([token("foo")], {"legacy": False}, "<<a>>", [3, 2, 9, 3155, 3155]),
        (STRIPS, {"legacy": False}, "{", [3, 2]),
        ([token("word", single_word=True)], {"legacy": False}, "word wordy sword word",
         [1448, 32100, 63, 16600, 32100]),
        ([token("|"), token("{", lstrip=True), token("}", rstrip=True)], {}, "a ｛ b｝",
         [3, 9, 3, 32101, 3, 115, 32102]),
    ],
)  # fmt: skip
def test_strips_words_and_legacy_are_transformers(shared, tmp_path, tokens, config, text, ids):
    pieces = shared / "data/t5_vocab/spiece.model"
    assert encoded(vocabularies.t5(folder_of(tmp_path, pieces, tokens, **config)), text) == ids


def test_bytes_with_added_tokens(tmp_path):
    text, ids = "ab <sep> c\td <extra_id_0>", [100, 101, 35, 384, 35, 102, 12, 103, 35, 259]
    sentinels = [token(f"<extra_id_{i}>", special=True) for i in range(125)]
    plain = folder_of(tmp_path, None, sentinels, 259, tokenizer_class="ByT5Tokenizer", extra_ids=0)
    assert vocabularies.is_byte_level(vocabularies.t5(plain))  # as every ByT5 of transformers 4
    added = folder_of(
        tmp_path, None, [*sentinels, token("<sep>")], 259, tokenizer_class="ByT5Tokenizer",
        extra_ids=0,
    )  # fmt: skip
    vocabulary = vocabularies.t5(added)
    assert encoded(vocabulary, text) == ids  # by transformers 4.57.6 and 5.23
    assert vocabularies.decode_tokens(vocabulary, [ids]) == [text]
    assert vocabulary.vocab_size == 385


def test_a_folder_without_further_tokens_is_read_by_sentencepiece(shared, tmp_path):
    pieces = shared / "data/t5_vocab/spiece.model"
    sentinels = [token(f"<extra_id_{99 - i}>", special=True) for i in range(100)]
    vocabulary = vocabularies.t5(folder_of(tmp_path, pieces, sentinels, 32000))
    assert not isinstance(vocabulary, AddedTokensVocabulary)
    assert vocabularies.same_vocabulary(vocabulary, vocabularies.t5(str(pieces))) is None


def test_ids_between_added_tokens_are_not_usable(shared, tmp_path):
    pieces = shared / "data/t5_vocab/spiece.model"
    vocabulary = vocabularies.t5(folder_of(tmp_path, pieces, [token("{")], 32105))
    valid = vocabularies.valid_ids(vocabulary, 32128)
    assert np.flatnonzero(~valid).tolist() == [0, *range(32100, 32105), *range(32106, 32128)]
    assert vocabularies.decode_tokens(vocabulary, [[9, 32101, 32105]]) == ["a {"]
    with pytest.raises(ValueError, match="table has 32100 rows, the vocabulary 32106 ids"):
        vocabularies.valid_ids(vocabulary, 32100)


def test_a_folder_with_nothing_but_tokenizer_json(tmp_path):
    pieces = [*CONTROL.values(), "▁one", "▁two", "▁three"]
    vocabulary = vocabularies.t5(unigram(tmp_path, pieces))
    assert encoded(vocabulary, "two one three two") == [4, 3, 5, 4]  # not cut after two
    assert vocabularies.decode_tokens(vocabulary, [[4, 3, 0, 1, 5]]) == ["two one"]
    assert vocabularies.t5(str(tmp_path / "tokenizer.json")) == vocabulary
    assert encoded(copy.deepcopy(vocabulary), "one") == [3]
