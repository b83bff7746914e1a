"""The data set of SeqKD: the teacher's rows to train on, the task's own to measure on."""

import itertools
import json

import numpy as np
import pytest

from gkd.data import pipeline, tasks
from gkd.data.teacher_outputs import with_teacher_outputs
from gkd.metrics import metrics
from gkd.vocabularies import vocabularies

BYTES = vocabularies.byte_level()


@pytest.fixture
def rows(tmp_path):
    """Files of a task with two splits, and of what a teacher wrote, as `infer` writes it."""
    for split, count in (("train", 3), ("validation", 2)):
        lines = [{"document": f"{split} {i}", "summary": f"reference {i}"} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    written = [
        {"index": i, "sample": s, "input": f"train {i}", "text": f"written {i}{s}", "tokens": [5]}
        for i in range(3)
        for s in range(2)
    ]
    written[3]["text"] = ""  # a teacher that said nothing
    (tmp_path / "written.jsonl").write_text("".join(json.dumps(x) + "\n" for x in written))
    return tmp_path


def summaries(rows):
    files = {split: f"{rows}/{split}.jsonl" for split in ("train", "validation")}
    return tasks.summarization("own", BYTES, files, metric_fns=(metrics.exact_match,))


def test_the_teachers_rows_take_the_place_of_the_training_rows_only(rows):
    task = with_teacher_outputs(
        summaries(rows), "written.jsonl", directory=str(rows), prefix="summarize: "
    )
    train = pipeline.tokenized_split(task, "train", texts=True)
    assert list(train.columns["inputs"].texts) == [
        f"summarize: train {i}" for i in (0, 0, 1, 1, 2, 2)
    ]
    assert list(train.columns["targets"].texts) == [f"written {x}" if x else "" for x in
                                   ("00", "01", "10", "", "20", "21")]  # fmt: skip
    assert list(train.empty) == [False, False, False, True, False, False]
    validation = pipeline.tokenized_split(task, "validation", texts=True)
    assert list(validation.columns["inputs"].texts) == [
        "summarize: validation 0",
        "summarize: validation 1",
    ]
    assert list(validation.columns["targets"].texts) == ["reference 0", "reference 1"]
    assert task.evaluate(["reference 0"] * 2, ["reference 0", "x"]) == {"exact_match": 50.0}
    assert task.splits == ("train", "validation")


def test_seqkd_on_a_file_is_fine_tuning_on_that_file(rows):
    path = f"{rows}/written.jsonl"
    task = with_teacher_outputs(summaries(rows), path, prefix="summarize: ", max_examples=4)
    same = tasks.local_text(
        {"train": path}, vocabulary=BYTES, target_field="text", prefix="summarize: ", max_examples=4
    )
    batches = [
        itertools.islice(pipeline.training_batches(data, "train", 2, 32, 16, seed=3), 5)
        for data in (task, same)
    ]
    for got, want in zip(*batches, strict=True):
        assert got.keys() == want.keys()
        for name in got:
            np.testing.assert_array_equal(got[name], want[name])


def test_what_a_task_knows_of_its_answers_stays(rows):
    task = with_teacher_outputs(tasks.arithmetic(), f"{rows}/written.jsonl")
    own = tasks.arithmetic()
    assert task.answer_of("2 + 3 = 5 #### 5") == 5 and task.vocabulary == own.vocabulary
    assert set(task.splits) == {"train", "validation", "test"}
    got, want = (pipeline.tokenized_split(each, "test").columns["targets"] for each in (task, own))
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.offsets, want.offsets)


def test_mistakes_are_one_line(rows):
    with pytest.raises(ValueError, match="set TEACHER_OUTPUTS"):
        with_teacher_outputs(summaries(rows), None)
    task = with_teacher_outputs(summaries(rows), "no.jsonl", directory=str(rows))
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl does not exist"):
        pipeline.tokenized_split(task, "train")
