"""Splits of tasks as inputs of `infer`: whose template a chat has, and empty prompts."""

import datetime
import json

import pytest

from gkd.data import prompts, tasks
from gkd.errors import InvalidFile
from gkd.infer.inputs import open_source
from gkd.infer.task_inputs import SplitSource
from gkd.vocabularies import vocabularies
from tests.vocabularies.tokenizer_folders import CHATML, byte_bpe

OTHER = "{% for m in messages %}({{ m.content }}){% endfor %}"


def split(tmp_path, vocabulary, text, chat=True):
    file = tmp_path / "rows.jsonl"
    rows = [{"input": "Hi", "target": "a"}, {"input": text, "target": "b"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.local_text({"train": str(file)}, vocabulary=vocabulary)
    if chat:
        task = prompts.formatted(task, prompt="chat", system="Be brief.")
    columns = [[b"Hi", text.encode()], [b"a", b"b"]]
    return SplitSource("task.gin", task, "train", *columns, "input", None)


def prompts_of(source):
    return [source.prompt_of(row) for row in source.rows()]


def test_a_model_of_another_vocabulary_reads_chats_by_its_own_template(tmp_path):
    """A teacher of another family writes the outputs for SeqKD."""
    own = vocabularies.from_folder(byte_bpe(tmp_path / "own", ends=258, chat_template=CHATML))
    source = split(tmp_path, own, "Ho")
    assert prompts_of(source.for_vocabulary(own)) == prompts_of(source)
    folder = byte_bpe(tmp_path / "other", first=("<s>",), ends=ord(")") - 32, chat_template=OTHER)
    other = vocabularies.from_folder(folder)
    assert prompts_of(source.for_vocabulary(other)) == ["(Be brief.)(Hi)", "(Be brief.)(Ho)"]
    without = vocabularies.from_folder(byte_bpe(tmp_path / "without", first=("<s>", "<t>")))
    with pytest.raises(FileNotFoundError, match="has no chat template"):
        source.for_vocabulary(without)


def test_an_empty_prompt_is_named_before_anything_is_generated(tmp_path):
    plain = vocabularies.from_folder(byte_bpe(tmp_path / "plain"))
    begun = vocabularies.from_folder(byte_bpe(tmp_path / "begun", begins=True))
    source = split(tmp_path, plain, "", chat=False)
    assert source.for_vocabulary(begun).count == 2
    with pytest.raises(InvalidFile, match="task.gin: row 2 is empty: a decoder-only model without"):
        source.for_vocabulary(plain)
    file = open_source(str(tmp_path / "rows.jsonl"), None, None, False)
    assert file.for_vocabulary(begun) == file.for_vocabulary(plain, prefix="say: ") == file
    with pytest.raises(InvalidFile, match="rows.jsonl:2 is empty: a decoder-only model without a"):
        file.for_vocabulary(plain)


@pytest.mark.parametrize("template, dated", [(CHATML, False), ("{{ strftime_now('%d') }}", True)])
def test_the_date_that_a_template_writes_is_a_fact_of_the_output(tmp_path, template, dated):
    """Else an output that is continued tomorrow has two kinds of prompts."""
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    vocabulary = vocabularies.from_folder(
        byte_bpe(tmp_path / "v", ends=258, chat_template=template)
    )
    before = datetime.date.today().isoformat()
    source = open_source(str(file), None, None, False).for_vocabulary(vocabulary)
    facts = source.settings()
    assert ("chat_date" in facts) == dated and "chat_template" in facts
    assert not dated or before <= facts["chat_date"] <= datetime.date.today().isoformat()
