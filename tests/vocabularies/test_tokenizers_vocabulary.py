"""Vocabularies of tokenizer.json: T5's family and decoder-only models, against golden ids."""

import copy
import json
import pathlib

import numpy as np
import pytest

from gkd.vocabularies import token_texts, vocabularies
from gkd.vocabularies.chat_templates import chat_template_of, render_chat
from gkd.vocabularies.token_rows import encode_prompts
from tests.vocabularies.tokenizer_folders import CHATML, CONTROL, SPECIAL, byte_bpe, unigram


def test_texts_ids_and_chats_are_those_of_transformers(shared):
    folder = shared / "golden/tokenizers/bpe512"
    golden = json.loads((folder / "golden.json").read_text())
    vocabulary = vocabularies.t5(str(folder))
    assert (len(golden["texts"]), len(golden["decode"]), len(golden["chat"])) == (67, 9, 14)
    for row in golden["texts"]:
        assert vocabulary.encode(row["text"]) == row["ids"]
        assert [vocabulary.pieces()[i] for i in row["ids"]] == row["tokens"]
    for row in [*golden["texts"], *golden["decode"]]:
        assert vocabulary.decode_ids(row["ids"]) == row["decoded"]
        assert vocabulary.decode_ids(row["ids"], True) == row["decoded_skip_special"]
    for row in golden["chat"]:
        template = chat_template_of(vocabulary)
        text = render_chat(template, row["messages"], row["add_generation_prompt"])
        assert text == row["text"]
        assert encode_prompts(vocabulary, [text]) == [row["ids"]]
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.vocab_size) == (-1, 2, 512)


def test_every_id_may_be_generated_where_the_padding_token_ends_outputs(tmp_path):
    vocabulary = vocabularies.from_folder(byte_bpe(tmp_path))
    assert (vocabulary.pad_id, vocabulary.end_ids, vocabulary.begin_ids) == (-1, (256,), ())
    valid = vocabularies.valid_ids(vocabulary, 264)
    assert np.flatnonzero(~valid).tolist() == [260, 261, 262, 263]
    with pytest.raises(ValueError, match="table has 256 rows, the vocabulary 260 ids"):
        vocabularies.valid_ids(vocabulary, 256)


def test_id_0_is_a_character_and_padding_is_none(tmp_path):
    vocabulary = vocabularies.from_folder(byte_bpe(tmp_path))
    rows = [[32, 0, 33, 256, 34], [0, -1, -1, -1, -1], [-1] * 5, [32, 500, 256, -1, -1]]
    assert vocabularies.decode_tokens(vocabulary, np.array(rows)) == ["A!B", "!", "", "A"]
    assert vocabulary.decode([0, 32, 256]) == "!A" and vocabulary.decode_ids([-1, 32]) == "A"
    assert vocabularies.encode_texts(vocabulary, ["!A"]) == [[0, 32]]
    assert token_texts.token_texts(vocabulary, [0, 32, 256]) == ["!", "A", "<|endoftext|>"]


@pytest.mark.parametrize(
    ("ends", "config", "end_ids"),
    [
        (None, {}, (256,)),
        (None, {"eos_token": "<|im_end|>"}, (258,)),
        (258, {}, (258,)),
        ([256, 258], {}, (256, 258)),
        # Llama 3: the EOS token is not the first of the list.
        ([256, 257, 258], {"eos_token": "<|im_end|>"}, (258, 256, 257)),
        # Gemma 3: the EOS token ends no turn of a chat.
        ([256, 258], {"chat_template": CHATML}, (258, 256)),
        # A base model with a chat template that its outputs do not follow (Qwen3-Base).
        (256, {"chat_template": CHATML}, (256,)),
        ([256, 999], {"chat_template": "{{ raise_exception('no') }}"}, (256,)),
    ],
)
def test_the_end_of_targets_is_the_first_of_several_ids(tmp_path, ends, config, end_ids):
    vocabulary = vocabularies.from_folder(byte_bpe(tmp_path, ends=ends, **config))
    assert (vocabulary.end_ids, vocabulary.eos_id) == (end_ids, end_ids[0])
    for end in end_ids:
        assert vocabularies.decode_tokens(vocabulary, [[32, end, 33]]) == ["A"]


def test_a_vocabulary_with_a_begin_is_no_t5s_whatever_its_ids(tmp_path):
    """Gemma's pad and EOS have T5's ids, and a folder may say that no BOS is to be added."""
    names = {
        "first": ("<pad>", "</s>"),
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "ends": [1, 260],
    }
    gemma = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False}
    vocabulary = vocabularies.from_folder(byte_bpe(tmp_path / "gemma", **names, **gemma))
    assert not vocabulary.ends_prompts and vocabulary.begin_ids == ()
    assert (vocabulary.pad_id, vocabulary.end_ids) == (-1, (1, 260))
    t5 = vocabularies.from_folder(byte_bpe(tmp_path / "t5", **names, bos_token=None))
    assert t5.ends_prompts and (t5.pad_id, t5.end_ids) == (0, (1,))


def test_without_any_end_of_sequence_the_files_to_mend_are_named(tmp_path):
    folder = byte_bpe(tmp_path, ends=[999], eos_token="<|none|>")
    vocabulary = vocabularies.from_folder(folder)
    with pytest.raises(ValueError, match="no end of sequence: name eos_token in tokenizer_conf"):
        vocabulary.eos_id  # noqa: B018


@pytest.mark.parametrize("ids", ["2", [-1], [True], [[1]]])
def test_a_damaged_list_of_ends_is_refused(tmp_path, ids):
    with pytest.raises(ValueError, match="generation_config.json: eos_token_id is") as error:
        vocabularies.from_folder(byte_bpe(tmp_path, ends=ids))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("begins", "config", "begin_ids"),
    [
        (False, {}, ()),
        (True, {}, (259,)),
        (True, {"add_bos_token": False}, (259,)),  # transformers' general class ignores it
        (True, {"add_bos_token": False, "tokenizer_class": "GemmaTokenizerFast"}, ()),
        (False, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}, (259,)),
    ],
)
def test_prompts_begin_as_the_tokenizer_begins_them(tmp_path, begins, config, begin_ids):
    vocabulary = vocabularies.from_folder(byte_bpe(tmp_path, begins, **config))
    assert vocabulary.begin_ids == begin_ids
    assert vocabularies.encode_texts(vocabulary, ["A"]) == [[32]]


def test_t5s_special_ids_are_kept_for_its_family(tmp_path):
    vocabulary = vocabularies.t5(unigram(tmp_path, [*CONTROL.values(), "▁one"]))
    ids = (vocabulary.pad_id, vocabulary.end_ids, vocabulary.begin_ids)
    assert (vocabulary.ends_prompts, ids) == (True, (0, (1,), ()))
    assert np.flatnonzero(~vocabularies.valid_ids(vocabulary, 4)).tolist() == [0]


def test_a_copy_and_the_fingerprint(tmp_path):
    first = vocabularies.from_folder(byte_bpe(tmp_path / "first"))
    second = vocabularies.from_folder(byte_bpe(tmp_path / "second", ends=[258]))
    assert copy.deepcopy(first) == first
    assert vocabularies.fingerprint(first) == vocabularies.fingerprint(second)
    assert vocabularies.same_vocabulary(first, second) is None  # the task's decides the ends
    other = vocabularies.byte_level()
    assert "one has 260 ids, the other 259" in vocabularies.same_vocabulary(first, other)


def test_the_token_for_images_is_left_out_of_a_text_models_ids(tmp_path):
    folder = pathlib.Path(byte_bpe(tmp_path))
    raw = json.loads((folder / "tokenizer.json").read_text())
    image = raw["added_tokens"][-1] | {"id": 260, "content": "<image_soft_token>"}
    raw["added_tokens"].append(image)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    vocabulary = vocabularies.from_folder(str(folder))
    assert vocabulary.vocab_size == 260
    assert vocabulary.encode("<image_soft_token>")[:2] == [ord("<") - 33, ord("i") - 33]
    assert vocabulary.encode(SPECIAL[258]) == [258]
