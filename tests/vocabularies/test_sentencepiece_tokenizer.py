"""Gemma's tokenizer.model: BOS, added tokens and byte pieces around sentencepiece's own pieces."""

import io
import json

import pytest
import sentencepiece

from gkd.vocabularies import vocabularies
from gkd.vocabularies.chat_templates import chat_template_of, render_chat
from gkd.vocabularies.token_rows import encode_prompts

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, model = tmp_path_factory.mktemp("gemma"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the user asks the model", "a line, the next line: 12 = 3"] * 9),
        model_writer=model, vocab_size=310, model_type="bpe", byte_fallback=True,
        add_dummy_prefix=False, remove_extra_whitespaces=False, minloglevel=2,
        normalization_rule_name="identity", pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n"],
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", hard_vocab_limit=False,
    )  # fmt: skip
    (path / "tokenizer.model").write_bytes(model.getvalue())
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    added = {str(i): {"content": name, "special": True} for i, name in enumerate(names)}
    config = {f"{name[1:-1]}_token": name for name in names[:4]} | {
        "tokenizer_class": "GemmaTokenizer",
        "added_tokens_decoder": added,
        "chat_template": TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    return path


def test_special_ids_are_gemmas(folder):
    vocabulary = vocabularies.from_folder(str(folder))
    assert (vocabulary.pad_id, vocabulary.begin_ids, vocabulary.end_ids) == (-1, (2,), (5, 1))
    assert vocabulary.pieces()[:7] == (
        "<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n",
    )  # fmt: skip
    assert vocabularies.valid_ids(vocabulary, vocabulary.vocab_size).all()


def test_the_token_of_images_beyond_the_models_table_is_left_out(folder, tmp_path):
    """Gemma 3's files list it after the pieces; the models of text alone have no row for it."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    size = vocabularies.from_folder(str(folder)).vocab_size
    config["added_tokens_decoder"][str(size)] = {"content": "<image_soft_token>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image_soft_token>": size}))
    vocabulary = vocabularies.from_folder(str(tmp_path))
    assert vocabulary.vocab_size == size and vocabularies.valid_ids(vocabulary, size).all()
    assert vocabulary.encode("<image_soft_token>")[0] < size


def test_texts_between_added_tokens_are_sentencepieces_own(folder):
    vocabulary = vocabularies.from_folder(str(folder))
    plain = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for text in ("the user", "  two  spaces\n\n", "漢字 é", ""):
        assert vocabulary.encode(text) == plain.encode(text)
        assert vocabulary.decode_ids(vocabulary.encode(text)) == text
    ids = [2, 4, *plain.encode("the model"), 1, *plain.encode(" a")]
    assert vocabulary.encode("<bos><start_of_turn>the model<eos> a") == ids
    assert vocabulary.decode_ids(ids) == "<bos><start_of_turn>the model<eos> a"
    assert vocabulary.decode_ids(ids, skip_special_tokens=True) == "the model a"


def test_a_chat_has_one_bos(folder):
    vocabulary = vocabularies.from_folder(str(folder))
    chat = [{"role": "user", "content": "the model"}]
    text = render_chat(chat_template_of(vocabulary), chat, add_generation_prompt=True)
    rows = encode_prompts(vocabulary, [text, "the model"])
    assert [row.count(2) for row in rows] == [1, 1] and rows[0][:2] == [2, 4]


def test_a_damaged_model_is_one_line(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="tokenizer.model is not a sentencepiece model") as error:
        vocabularies.from_folder(str(tmp_path))
    assert "\n" not in str(error.value)
