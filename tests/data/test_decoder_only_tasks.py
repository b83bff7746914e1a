"""Tasks over a vocabulary whose id 0 is a character: padding, ends, and prompts as chats."""

import json

import numpy as np
import pytest

from gkd.data import pipeline, prompts, tasks, teacher_inputs, teacher_outputs
from gkd.data.offline_teacher import OfflineTeacher
from gkd.data.tokenized_splits import tokenized_split
from gkd.metrics import reward_functions
from gkd.vocabularies import vocabularies
from gkd.vocabularies.placeholder import placeholder, placeholders
from tests.vocabularies.tokenizer_folders import CHATML, byte_bpe

# Id 0 is '!', 'A' is 32; texts of few characters, and the ids of special tokens.
USER, END = 257, 258


@pytest.fixture
def make(tmp_path):
    """Function of rows and a tokenizer's options to a task with the split train."""

    def task(rows=(("A!", "B!"), ("!!!AB", "C")), **config):
        path = tmp_path / "rows.jsonl"
        lines = [json.dumps({"input": source, "target": target}) for source, target in rows]
        path.write_text("\n".join(lines) + "\n")
        folder = byte_bpe(tmp_path / "tokenizer", ends=[256, 258], chat_template=CHATML, **config)
        return tasks.local_text({"train": str(path)}, vocabulary=vocabularies.from_folder(folder))

    return task


def ids_of(task, text):
    return vocabularies.encode_texts(task.vocabulary, [text])[0]


def test_a_plain_batch_by_hand(make):
    task = make()
    space = ids_of(task, " ")[0]
    batch = next(pipeline.training_batches(task, "train", 2, 4, 4, seed=0, shuffle=False))
    assert batch["encoder_input_tokens"].tolist() == [
        [32, 0, -1, -1],  # no EOS; '!' is a token
        [0, 0, 32, 33],  # cut in its middle
    ]
    assert batch["decoder_target_tokens"].tolist() == [
        [space, 33, 0, 258],  # the next word after the prompt
        [space, 34, 258, -1],
    ]
    assert (batch["inputs_cut"], batch["targets_cut"]) == (1, 0)
    assert batch["padding"] == 2 + 1 and batch["positions"] == 16


def test_prompts_begin_with_bos_where_the_tokenizer_has_one(make):
    task = make(begins=True)
    batch = next(pipeline.training_batches(task, "train", 2, 4, 4, seed=0, shuffle=False))
    assert batch["encoder_input_tokens"].tolist() == [[259, 32, 0, -1], [259, 0, 32, 33]]


def chat_of(task, text, system=None):
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return ids_of(task, f"{before}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def test_a_chat_is_what_the_model_reads_and_the_text_what_metrics_see(make):
    task = prompts.formatted(make(), "chat", "Go!")
    data = tokenized_split(task, "train", texts=True)
    inputs, targets = data.columns["inputs"], data.columns["targets"]
    assert inputs.texts == ("A!", "!!!AB")
    expected = [chat_of(task, text, "Go!") for text in inputs.texts]
    assert expected[0][0] == USER and expected[0].count(END) == 2
    assert inputs.tokens.tolist() == [*expected[0], *expected[1]]
    assert targets.tokens.tolist() == [33, 0, END, 34, END]  # no space after a turn


@pytest.mark.parametrize("prompt", ["text", "chat"])
def test_the_tokens_are_those_of_the_seqio_task(make, prompt):
    task = prompts.formatted(make(begins=True), prompt)
    data = tokenized_split(task, "train")
    dataset = task.task.get_dataset(split="train", shuffle=False)
    rows = list(dataset.as_numpy_iterator())
    for name in ("inputs", "targets"):
        own = [row[name].tolist() for row in rows]
        assert sum(own, []) == data.columns[name].tokens.tolist()
    assert rows[0]["inputs_pretokenized"] == b"A!"


def test_the_teachers_own_prompt_is_a_chat_too(make):
    plain = prompts.formatted(make(), "chat")
    task = teacher_inputs.with_teacher_inputs(plain, teacher_inputs.template("{inputs}={targets}"))
    columns = tokenized_split(task, "train", max_examples=1).columns
    assert columns["teacher_inputs"].tokens.tolist() == chat_of(task, "A!=B!")
    assert columns["inputs"].tokens.tolist() == chat_of(task, "A!")
    of_teacher = teacher_inputs.of_teacher_prompts(plain, teacher_inputs.template("{targets}"))
    columns = tokenized_split(of_teacher, "train", max_examples=1).columns
    assert columns["inputs"].tokens.tolist() == chat_of(task, "B!")


def test_chats_of_a_mixture_and_of_a_teachers_outputs(make, tmp_path):
    plain = make()
    chat = prompts.formatted(make(), "chat")
    other = tasks.local_text(
        {"train": str(tmp_path / "rows.jsonl")}, name="other", vocabulary=plain.vocabulary
    )
    with pytest.raises(ValueError, match="differ in the form of their prompts"):
        tasks.mixture([chat, other])
    mixed = prompts.formatted(tasks.mixture([plain, other]), "chat")
    wanted = tokenized_split(chat, "train").columns["inputs"].tokens.tolist()
    assert sorted(tokenized_split(mixed, "train").columns["inputs"].tokens) == sorted(wanted * 2)
    (tmp_path / "out.jsonl").write_text('{"input": "A!", "text": "D"}\n')
    of_teacher = teacher_outputs.with_teacher_outputs(chat, str(tmp_path / "out.jsonl"))
    columns = tokenized_split(of_teacher, "train").columns
    assert columns["inputs"].tokens.tolist() == chat_of(chat, "A!")
    assert columns["targets"].tokens.tolist() == [35, END]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, ("html",), "PROMPT is 'html': use 'text' or 'chat'"),
        ({}, ("text", "Be brief."), "SYSTEM and CHAT_OPTIONS belong to chats"),
        ({"chat_template": None}, ("chat",), "has no chat template"),
        # A base model, whose outputs do not end with the turn of its template.
        ({"ends": 256}, ("chat",), r"turn with '<\|im_end\|>\\n', but outputs end with '<\|endof"),
        ({"chat_template": "{{ raise_exception('no system') }}"}, ("chat", "x"), "no system"),
    ],
)
def test_what_cannot_be_a_chat_is_one_line(make, tmp_path, config, options, message):
    task = make()
    folder = byte_bpe(tmp_path / "other", **{"chat_template": CHATML, "ends": [256, 258]} | config)
    files = {"train": str(tmp_path / "rows.jsonl")}
    task = tasks.local_text(files, vocabulary=vocabularies.from_folder(folder))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        prompts.formatted(task, *options)
    assert "\n" not in str(error.value)


def test_a_plan_without_a_tokenizer_needs_no_template(make, tmp_path):
    make()
    with placeholders():
        vocabulary = placeholder()
    task = tasks.local_text({"train": str(tmp_path / "rows.jsonl")}, vocabulary=vocabulary)
    assert prompts.formatted(task, "chat") is task


def test_variables_of_the_template(make):
    task = make(eos_token="<|im_end|>")
    (task.vocabulary.files.folder / "chat_template.jinja").write_text("{{ thinking }}")
    task = tasks.local_text(
        {"train": str(task.vocabulary.files.folder.parent / "rows.jsonl")},
        vocabulary=vocabularies.from_folder(str(task.vocabulary.files.folder)),
    )
    chat = prompts.formatted(task, "chat", options={"thinking": "!"})
    assert tokenized_split(chat, "train").columns["inputs"].tokens.tolist() == [0, 0]


def test_cached_teacher_targets_are_padded_as_the_batch(make, tmp_path):
    row = {"index": 0, "sample": 0, "target_tokens": [33, 0, 258],
           "target_top_ids": [[0, 1]] * 3, "target_top_log_probs": [[-1.0, -2.0]] * 3}  # fmt: skip
    path = tmp_path / "teacher.jsonl"
    path.write_text(json.dumps(row) + "\n")
    teacher = OfflineTeacher.read(str(path), 5, padding_id=-1)
    assert teacher.target_tokens.tolist() == [[33, 0, 258, -1, -1]]
    ids, _ = teacher.rows(np.array([0]), np.array([[33, 0, 258, -1, -1]]))
    assert ids.shape == (1, 5, 2)


def test_rewards_see_the_whole_prompt_of_several_turns(make):
    task = prompts.formatted(make(), "chat")
    batch = next(pipeline.training_batches(task, "train", 2, 40, 4, seed=0, shuffle=False))
    seen = []

    def reward(prompts, samples, references):
        seen.append((prompts, samples, references))
        return [1.0] * len(samples)

    tokens = batch["decoder_target_tokens"]
    reward_functions.rewards_of_rows(
        reward, task.vocabulary, batch["encoder_input_tokens"], tokens, tokens
    )
    [(texts, samples, references)] = seen
    assert texts[0] == "<|im_start|>user\nA!<|im_end|>\n<|im_start|>assistant\n"
    assert samples == references == ["B!", "C"]


def test_losses_that_join_prompts_with_eos_are_refused(make):
    vocabulary = make().vocabulary
    with pytest.raises(ValueError, match="needs models of T5's family"):
        reward_functions.entailment().build(vocabulary)
