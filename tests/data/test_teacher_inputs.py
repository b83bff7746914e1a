"""Another prompt for the teacher: its texts, its column in batches, what it leaves unchanged."""

import hashlib
import json

import numpy as np
import pytest

from gkd.data import pipeline, tasks, teacher_inputs, teacher_outputs
from gkd.vocabularies import vocabularies
from gkd.vocabularies.tensorflow_host import tf

BYTES = vocabularies.byte_level()
ROWS = [("ab", "cd"), ("abcd", "wxyz"), ("", "c"), ("abc", "d")]


@pytest.fixture
def task(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"input": source, "target": target} for source, target in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.local_text({"train": str(path), "validation": str(path)}, vocabulary=BYTES)


def with_hint(task, length=None):
    return teacher_inputs.with_teacher_inputs(
        task, teacher_inputs.template("{inputs}:{targets}"), length
    )


def bytes_of(text):
    return [byte + 3 for byte in text.encode()]


def test_the_teachers_column_by_hand(task):
    batches = pipeline.training_batches(with_hint(task, 6), "train", 4, 4, 3, 0, shuffle=False)
    batch = next(batches)
    assert batch["teacher_encoder_input_tokens"].tolist() == [
        [*bytes_of("ab:cd"), 1],
        [*bytes_of("abcd:"), 1],  # truncated: it still ends
        [*bytes_of(":c"), 1, 0, 0, 0],
        [*bytes_of("abc:d"), 1],
    ]
    assert batch["example_weights"].tolist() == [1, 1, 0, 1]
    assert (batch["teacher_inputs_cut"], batch["inputs_cut"]) == (1, 1)
    assert batches.count_cuts() == {
        "inputs cut": 1, "targets cut": 1, "teacher inputs cut": 1, "empty examples": 1,
    }  # fmt: skip


def test_the_other_columns_are_those_of_the_task_itself(task):
    plain = next(pipeline.training_batches(task, "train", 4, 4, 3, seed=5))
    other = next(pipeline.training_batches(with_hint(task), "train", 4, 4, 3, seed=5))
    assert set(other) - set(plain) == {"teacher_encoder_input_tokens", "teacher_inputs_cut"}
    for name in set(plain) - {"positions", "padding"}:  # of all columns
        np.testing.assert_array_equal(other[name], plain[name])
    assert other["positions"] == plain["positions"] + 4 * 4
    assert other["teacher_encoder_input_tokens"].shape == (4, 4)  # the student's length
    evaluation = pipeline.evaluation_batches(with_hint(task, 9), "validation", 4, 4, 3)
    assert evaluation.batches[0]["teacher_encoder_input_tokens"].shape == (4, 9)
    assert evaluation.inputs == ("ab", "abcd", "abc")


def test_a_task_without_it_keeps_its_fingerprint(task):
    """The position of a run begun before there were teacher prompts still fits its data."""
    digest = hashlib.blake2b(digest_size=16)
    for column in zip(*ROWS, strict=True):
        tokens = [[*bytes_of(text), 1] for text in column]
        digest.update(np.array([x for row in tokens for x in row], np.uint16))
        digest.update(np.cumsum([0, *map(len, tokens)]).astype(np.int64))
    digest.update(np.array([False, False, True, False]))
    assert pipeline.tokenized_split(task, "train").fingerprint() == digest.hexdigest()
    assert pipeline.tokenized_split(with_hint(task), "train").fingerprint() != digest.hexdigest()


def test_a_preprocessor_sees_the_fields_of_the_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "question", "b": "con\ttext", "c": "answer"}) + "\n")
    base = tasks.instructions(
        [("Q: {a}", "{c}")], files={"train": str(path)}, vocabulary=BYTES, extra_fields=["b"]
    )

    def preprocessor(row):
        return tf.strings.join([row["b"], " | ", row["inputs"]])

    for chosen in (preprocessor, teacher_inputs.template("{b} | {inputs}")):
        made = teacher_inputs.with_teacher_inputs(base, chosen)
        data = pipeline.tokenized_split(made, "train", texts=True)
        assert data.columns["teacher_inputs"].texts == (
            "con\ttext | Q: question",
        )  # bytes have tabs
        assert data.columns["inputs"].texts == ("Q: question",)


def test_an_empty_teacher_prompt_has_no_weight(task):
    made = teacher_inputs.with_teacher_inputs(
        task, lambda row: tf.where(row["inputs"] == "ab", " ", row["inputs"])
    )
    batch = next(pipeline.training_batches(made, "train", 4, 4, 3, 0, shuffle=False))
    assert batch["example_weights"].tolist() == [0, 1, 0, 1]


def test_the_teachers_outputs_as_data_have_no_teacher_prompts(task, tmp_path):
    file = tmp_path / "outputs.jsonl"
    file.write_text(json.dumps({"input": "x", "text": "y"}) + "\n")
    made = teacher_outputs.with_teacher_outputs(with_hint(task), str(file))
    assert made.features == ("inputs", "targets")
    for split, rows in (("train", 1), ("validation", 4)):
        assert pipeline.tokenized_split(made, split).rows == rows


def test_what_cannot_be_is_one_line(task):
    with pytest.raises(ValueError, match="has teacher_inputs already: set them once"):
        with_hint(with_hint(task))
    with pytest.raises(ValueError, match="template names 'answer'; a row has"):
        made = teacher_inputs.with_teacher_inputs(task, teacher_inputs.template("{answer}"))
        pipeline.tokenized_split(made, "train")
    with pytest.raises(ValueError, match="teacher_input_length=0 must be at least 1"):
        pipeline.training_batches(with_hint(task, 0), "train", 4, 4, 3, 0)
    with pytest.raises(ValueError, match="differ in their features"):
        tasks.mixture([task, with_hint(task)])


def test_a_student_that_reads_the_teachers_prompt(task):
    """What the teacher reads, in the student's column; targets and what is evaluated stay."""
    fill = teacher_inputs.template("{inputs}:{targets}")
    made = teacher_inputs.of_teacher_prompts(task, fill, "hinted")
    assert made.name == "hinted" and made.features == ("inputs", "targets")
    batches = pipeline.training_batches(made, "train", 4, 6, 3, 0, shuffle=False)
    batch, plain = next(batches), next(pipeline.training_batches(task, "train", 4, 6, 3, 0, False))
    assert batch["encoder_input_tokens"].tolist() == [
        [*bytes_of("ab:cd"), 1],
        [*bytes_of("abcd:"), 1],
        [*bytes_of(":c"), 1, 0, 0, 0],
        [*bytes_of("abc:d"), 1],
    ]
    assert batch["example_weights"].tolist() == [1, 1, 0, 1]
    np.testing.assert_array_equal(batch["decoder_target_tokens"], plain["decoder_target_tokens"])
    evaluation = pipeline.evaluation_batches(made, "validation", 4, 9, 3)
    assert evaluation.inputs == ("ab:cd", "abcd:wxyz", "abc:d")
