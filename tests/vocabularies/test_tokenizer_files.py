"""Tokenizer files that are damaged or disagree."""

import pytest

from gkd.vocabularies import vocabularies
from tests.vocabularies.tokenizer_folders import unigram


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab.json": "{}", "merges.txt": ""}, "has its tokenizer in vocab.json, which is not"),
        ({}, "the folder holds no tokenizer"),
        ({"tokenizer.json": "{}"}, "tokenizer.json is not read by the library tokenizers"),
        ({"tokenizer.json": '{"model"'}, "tokenizer.json is not JSON, damaged or truncated"),
        ({"tokenizer.json": '{"added_tokens": [1]}'}, "added_tokens is .*a list of objects"),
        ({"added_tokens.json": '{"{": "9"}'}, "added_tokens.json: id is '9': a whole number"),
        ({"added_tokens.json": '{"{": -1}'}, "id is -1: use 0 or more"),
        ({"added_tokens.json": '{"\\ud83d": 300}'}, "is no valid text"),
        ({"added_tokens.json": '{"{": 300, "}": 300}'}, "disagree, id 300 is '{' in one and '}'"),
        ({"added_tokens.json": '{"{": 300}',
          "tokenizer_config.json": '{"added_tokens_decoder": {"301": {"content": "{"}}}'},
         "give '{' the ids 301 and 300"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"x": {}}}'}, "has 'x', not an id"),
        ({"tokenizer_config.json": '{"extra_ids": "many"}'}, "extra_ids is 'many': a whole num"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        vocabularies.t5(str(tmp_path))
    assert "\n" not in str(error.value)


def test_files_that_disagree_are_refused(tmp_path):
    small = vocabularies.arithmetic()
    (tmp_path / "spiece.model").symlink_to(small.sentencepiece_model_file)
    pieces = small.tokenizer.id_to_piece(list(range(small.vocab_size)))
    unigram(tmp_path, pieces)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    assert vocabularies.same_vocabulary(vocabularies.t5(str(tmp_path)), small) is None
    unigram(tmp_path, [*pieces[:11], "▁carts", *pieces[12:]])
    with pytest.raises(ValueError, match="disagree, spiece.model and tokenizer.json: id 11 is"):
        vocabularies.t5(str(tmp_path))
    (tmp_path / "added_tokens.json").write_text('{"{": 51}')
    with pytest.raises(ValueError, match="'{' has id 51 but not in .*tokenizer.json"):
        vocabularies.t5(str(tmp_path))
