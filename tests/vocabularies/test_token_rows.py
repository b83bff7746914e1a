"""Prompts and targets as rows of ids, their ends and truncation."""

import json

import numpy as np
import pytest

from gkd.models.interface import SpecialIds
from gkd.vocabularies import token_rows, vocabularies
from tests.vocabularies.tokenizer_folders import byte_bpe, unigram


@pytest.fixture
def bpe(tmp_path):
    return vocabularies.from_folder(byte_bpe(tmp_path / "bpe"))


@pytest.fixture
def with_bos(tmp_path):
    folder = byte_bpe(tmp_path / "bos", begins=True, ends=[256, 258], eos_token="<|im_end|>")
    return vocabularies.from_folder(folder)


def test_a_decoder_only_prompt_begins_once_and_does_not_end(bpe, with_bos):
    assert token_rows.encode_prompts(vocabularies.byte_level(), ["AB", ""]) == [[68, 69, 1], [1]]
    assert token_rows.encode_prompts(bpe, ["A!", ""]) == [[32, 0], []]
    assert token_rows.encode_prompts(with_bos, ["A!", "<|begin|>A", ""]) == [
        [259, 32, 0], [259, 32], [259],
    ]  # fmt: skip


def test_targets_end_in_every_family(bpe, with_bos):
    assert token_rows.encode_targets(vocabularies.byte_level(), ["A"]) == [[68, 1]]
    assert token_rows.encode_targets(bpe, ["A"]) == [[32, 256]]
    assert token_rows.encode_targets(with_bos, ["A"]) == [[32, 258]]
    assert token_rows.ended(with_bos, [32, 256]) and token_rows.ended(with_bos, [258])
    assert not token_rows.ended(with_bos, [32]) and not token_rows.ended(with_bos, [])


def test_truncation_keeps_the_instruction_and_what_the_output_continues(bpe, with_bos):
    row = list(range(5, 15))
    short = token_rows.shortened_prompt
    assert list(short(vocabularies.byte_level(), row, 4)) == [5, 6, 7, 1]
    assert list(short(bpe, np.array(row), 5)) == [5, 6, 12, 13, 14]
    assert list(short(with_bos, [259, *row], 4)) == [259, 5, 13, 14]
    assert list(short(with_bos, [259, *row], 1)) == [14]
    assert list(short(bpe, row, 10)) == row


def test_options_continue_a_plain_prompt(bpe):
    options = token_rows.encode_options
    space = bpe.encode(" ")[0]
    assert options(vocabularies.byte_level(), ["A"]) == [[68, 1]]
    assert options(bpe, ["A"]) == [[space, 32]]
    assert options(bpe, ["A"], after_text=False) == [[32]]


def test_a_tokenizer_that_adds_a_space_itself_gets_no_second_one(tmp_path, bpe):
    """Llama 2's: its pieces begin with the space."""
    unigram(tmp_path, ["<unk>", "</s>", "<pad>", "▁", "▁A", "A"])
    names = {"eos_token": "</s>", "pad_token": "<pad>", "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    spaced = vocabularies.from_folder(str(tmp_path))
    assert spaced.adds_space and not bpe.adds_space
    assert [spaced.pieces()[i] for i in token_rows.encode_options(spaced, ["A"])[0]] == ["▁A"]


def test_the_text_of_a_prompt_holds_the_ends_of_its_turns(with_bos):
    text = "<|im_start|>A<|im_end|>!"
    row = [*token_rows.encode_prompts(with_bos, [text])[0], -1, -1]
    assert row == [259, 257, 32, 258, 0, -1, -1]
    assert token_rows.decode_prompts(with_bos, np.array([row])) == [text]
    assert token_rows.decode_prompts(vocabularies.byte_level(), [[68, 1, 0]]) == ["A"]


def test_a_model_of_another_family_is_refused(bpe):
    check = token_rows.check_special_ids
    check("STUDENT", SpecialIds(), vocabularies.byte_level())
    check("STUDENT", SpecialIds(end=256, padding=-1), bpe)
    for ids, message in ((SpecialIds(), "padding id 0, but .*-1"),
                         (SpecialIds(end=5, padding=-1), "end id 5, but .* 256")):  # fmt: skip
        with pytest.raises(ValueError, match=f"STUDENT has {message}: T5 needs") as error:
            check("STUDENT", ids, bpe)
        assert "\n" not in str(error.value)
