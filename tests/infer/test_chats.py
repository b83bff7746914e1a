"""The verb `infer` over chats: the model's own template, and one line for what is no chat."""

import pytest

from gkd.infer.generator import encode_inputs, encode_targets
from gkd.vocabularies import vocabularies
from tests.infer.inference import read
from tests.vocabularies.tokenizer_folders import CHATML, byte_bpe

HELLO = [{"role": "user", "content": "Hi there!"}]
LONGER = [
    {"role": "system", "content": "Be brief."}, *HELLO,
    {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "ü\n\n  b"},
]  # fmt: skip


@pytest.fixture
def chat(run, tmp_path):
    """Runs `infer` over rows, with a tokenizer that has a chat template and T5's special ids."""

    def go(rows, template=CHATML, **options):
        folder = byte_bpe(
            tmp_path / "tokenizer", first=("<pad>", "</s>"), eos_token="</s>", pad_token="<pad>",
            bos_token=None, chat_template=template,
        )  # fmt: skip
        path = run.write("chats.jsonl", rows)
        code = run(path, vocabulary=folder, **options)
        return read(tmp_path / "out.jsonl") if code == 0 else code

    return go


def test_messages_are_answered_as_the_text_that_the_template_makes_of_them(chat, run):
    rows = chat([{"messages": HELLO, "id": 7}, {"messages": LONGER}])
    text = "<|im_start|>user\nHi there!<|im_end|>\n<|im_start|>assistant\n"
    assert rows[0]["input"] == text
    assert rows[1]["input"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert rows[0]["messages"] == HELLO and rows[0]["id"] == 7
    (run.folder / "out.jsonl").unlink()
    (run.folder / "out.jsonl.settings.json").unlink()
    plain = chat([{"input": row["input"]} for row in rows])
    assert [row["tokens"] for row in plain] == [row["tokens"] for row in rows]
    assert [row["text"] for row in plain] == [row["text"] for row in rows]


def test_a_named_field_and_a_score(chat):
    rows = chat([{"prompt": HELLO, "target": "A"}, {"prompt": LONGER, "target": "!"}], score=True)
    assert [len(row["target_log_probs"]) for row in rows] == [2, 2]  # with EOS, without a space


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "chats.jsonl:2: messages: []: a list of messages"),
        ({"messages": "Hi"}, "chats.jsonl:2: messages: 'Hi': a list of messages"),
        ({"other": 1}, "chats.jsonl:2: messages: None: a list of messages"),
        ({"messages": [{"content": "x"}]}, "chats.jsonl:2: messages: message 1 has no role"),
        ({"messages": [{"role": "bot", "content": ""}]}, "message 1 has role 'bot': use one of"),
        ({"messages": LONGER[:3]}, "chats.jsonl:2: messages: the last message is the assistant's"),
    ],
)
def test_what_is_no_chat_is_one_line_with_its_number(chat, run, row, message):
    assert chat([{"messages": HELLO}, row]) == 1
    run.refused(message)


def test_a_template_that_refuses_a_chat_names_the_line(chat, run):
    template = "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
    assert chat([{"messages": HELLO}, {"messages": LONGER}], template) == 1
    run.refused("chats.jsonl:2: ", "the chat template fails: one only")


def test_without_a_template_or_with_a_prefix(chat, run):
    assert chat([{"messages": HELLO}], None) == 1
    run.refused("has no chat template")
    assert chat([{"messages": HELLO}], prefix="say: ") == 1
    run.refused("prefix 'say: ' belongs to inputs as text, not to messages")


def test_a_vocabulary_of_a_decoder_only_model_is_no_t5s(run, tmp_path):
    folder = byte_bpe(tmp_path / "tokenizer")
    assert run(run.write("t.jsonl", [{"input": "a"}]), vocabulary=folder) == 1
    run.refused("has padding id 0, but", "tokenizer.json -1: T5 needs a vocabulary with pad 0")


def test_inputs_of_a_decoder_only_model_are_continued(tmp_path):
    plain = vocabularies.from_folder(byte_bpe(tmp_path / "plain", ends=[256, 258]))
    space = plain.encode(" ")[0]
    assert encode_inputs(plain, ["A!", "!!AB"], 3) == ([[32, 0], [0, 32, 33]], 1)
    assert encode_targets(plain, ["A", " A"], 9) == ([[space, 32, 256]] * 2, 0)
    assert encode_targets(plain, ["AB"], 2, after_text=False) == ([[32, 33]], 1)
    with pytest.raises(ValueError, match="an input is empty: a decoder-only model without a BOS"):
        encode_inputs(plain, ["A", ""], 3)
    begun = vocabularies.from_folder(byte_bpe(tmp_path / "begun", begins=True))
    assert encode_inputs(begun, ["", "!AB"], 3) == ([[259], [259, 32, 33]], 1)


def test_a_tasks_chats_are_read_and_its_plain_prompts_written(run, tmp_path):
    folder = byte_bpe(
        tmp_path / "tokenizer", first=("<pad>", "</s>"), eos_token="</s>", pad_token="<pad>",
        bos_token=None, chat_template=CHATML,
    )  # fmt: skip
    rows = run.write("rows.jsonl", [{"input": "Hi there!", "target": "A"}])
    task = run.write("task.gin", [
        "from __gin__ import dynamic_registration", "from gkd.vocabularies import vocabularies",
        "include 'configs/tasks/local_text.gin'",
        f"FILES = {{'train': {str(rows)!r}}}", f"vocabularies.t5.path = {folder!r}",
    ])  # fmt: skip
    [row] = run.rows(None, task=task, vocabulary=folder, **{"gin.PROMPT": "'chat'"})
    text = "<|im_start|>user\nHi there!<|im_end|>\n<|im_start|>assistant\n"
    [plain] = run.rows(run.write("p.jsonl", [{"input": text}]), "p.out.jsonl", vocabulary=folder)
    assert row["input"] == "Hi there!" and row["tokens"] == plain["tokens"]
    assert '"chat": ' in (tmp_path / "out.jsonl.settings.json").read_text()
