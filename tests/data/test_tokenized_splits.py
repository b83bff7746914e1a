"""The tokens of a split, by hand."""

import json

import pytest

from gkd.data import tasks
from gkd.data.tokenized_splits import tokenized_split
from gkd.vocabularies import vocabularies
from tests.data.small_texts import BYTES


@pytest.fixture
def task(tmp_path):
    rows = [{"input": "ab", "target": "c"}, {"input": "", "target": "d"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.local_text({"train": str(path)}, vocabulary=BYTES)


def test_tokens_lie_end_to_end_each_row_with_its_end(task):
    """A byte b is the id b + 3; 1 ends a text."""
    data = tokenized_split(task, "train", texts=True)
    inputs, targets = data.columns["inputs"], data.columns["targets"]
    assert inputs.tokens.tolist() == [100, 101, 1, 1] and inputs.offsets.tolist() == [0, 3, 4]
    assert targets.tokens.tolist() == [102, 1, 103, 1] and targets.lengths.tolist() == [2, 2]
    assert inputs.texts == ("ab", "") and data.empty.tolist() == [False, True]
    assert data.rows == 2 and tokenized_split(task, "train", max_examples=1).rows == 1


def test_the_fingerprint_is_of_the_tokens_and_not_of_the_texts(task, tmp_path):
    first = tokenized_split(task, "train").fingerprint()
    assert tokenized_split(task, "train", texts=True).fingerprint() == first
    (tmp_path / "rows.jsonl").write_text('{"input": "ac", "target": "c"}\n')
    assert tokenized_split(task, "train").fingerprint() != first


def test_several_references_beside_the_first_which_is_the_target(tmp_path):
    path = tmp_path / "several.jsonl"
    rows = [{"q": "x", "a": {"text": ["b ", 2, "c\n d"]}}, {"q": "y", "a": {"text": "e"}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.summarization(
        files={"train": str(path)}, vocabulary=vocabularies.arithmetic(), input_field="q",
        target_field="a.text",
    )  # fmt: skip
    data = tokenized_split(task, "train", texts=True)
    assert data.columns["targets"].texts == ("b", "e")
    assert data.references == (("b", "2", "c d"), ("e",))
    assert tokenized_split(task, "train").references == ()
