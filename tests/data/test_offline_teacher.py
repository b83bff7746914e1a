"""A teacher's stored top-k: rows looked up by hand-made files, and every kind of damage."""

import gzip
import json
import math

import numpy as np
import pytest

from gkd.data.offline_teacher import OfflineTeacher


def line(index, tokens, **changes):
    """A line of `infer`: at token t of row i the best ids are 10·i + t and 100, 3 to 1."""
    row = {
        "index": index,
        "sample": 0,
        "text": "ignored",
        "target_tokens": tokens,
        "target_top_ids": [[10 * index + t, 100] for t in range(len(tokens))],
        "target_top_log_probs": [[math.log(0.6), math.log(0.2)] for _ in tokens],
    }
    return {**row, **changes}


ROWS = [line(0, [5, 6, 1]), line(1, [7, 8, 9, 1]), line(2, [1])]


@pytest.fixture
def written(tmp_path):
    """Writes rows as a JSONL file; returns its path."""

    def write(rows, name="teacher.jsonl"):
        path = tmp_path / name
        text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "wt") as file:
            file.write(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", ["teacher.jsonl", "teacher.jsonl.gz"])
def test_rows_come_by_their_numbers_cut_and_padded(written, name):
    teacher = OfflineTeacher.read(written(ROWS, name), 3, rows=3, vocabulary_size=101)
    ids, log_probs = teacher.rows(
        np.array([1, 2, 1, 0]), np.array([[7, 8, 9], [1, 0, 0], [7, 8, 9], [5, 6, 1]])
    )
    row_1 = [[10, 100], [11, 100], [12, 100]]
    assert ids.tolist() == [
        row_1, [[20, 100], [0, 1], [0, 1]], row_1, [[0, 100], [1, 100], [2, 100]],
    ]  # fmt: skip
    probabilities = np.exp(log_probs)
    np.testing.assert_allclose(probabilities[0], [[0.6, 0.2]] * 3, rtol=1e-6)
    np.testing.assert_allclose(probabilities[1], [[0.6, 0.2], [0.5, 0.5], [0.5, 0.5]], rtol=1e-6)
    assert (ids.dtype, log_probs.dtype, teacher.k) == (np.int32, np.float32, 2)


def test_of_several_samples_the_first_counts(written):
    rows = [{**row, "sample": sample} for row in ROWS for sample in range(2)]
    for row in rows[1::2]:
        row["target_tokens"] = "not read"
    teacher = OfflineTeacher.read(written(rows), 3)
    assert teacher.target_tokens.tolist() == [[5, 6, 1], [7, 8, 9], [1, 0, 0]]


@pytest.mark.parametrize(
    ("numbers", "tokens", "message"),
    [
        ([2, 0], [[1, 0, 0], [5, 6, 2]], "row 0 has other target tokens"),
        ([1], [[7, 8, 0]], "row 1 has other target tokens than the batch: .* another data set"),
        ([2, 3], [[1, 0, 0]] * 2, "has 3 rows, the batch needs row 3"),
        ([-1], [[1, 0, 0]], "has 3 rows, the batch needs row -1"),
        ([2], [[1, 0, 0, 0]], "read for targets of 3 tokens, the batch has 4"),
    ],
)
def test_rows_of_another_data_set_are_refused(written, numbers, tokens, message):
    teacher = OfflineTeacher.read(written(ROWS), 3)
    with pytest.raises(ValueError, match=message):
        teacher.rows(np.array(numbers), np.array(tokens))


def test_batches_of_shorter_targets_have_as_many_scores(written):
    teacher = OfflineTeacher.read(written(ROWS), 3)
    whole, short = (
        teacher.rows(np.array([2]), np.array([[1, 0, 0]])),
        teacher.rows(np.array([2]), np.array([[1]])),
    )
    for long, cut in zip(whole, short, strict=True):
        assert cut.shape == (1, 1, 2)
        np.testing.assert_array_equal(long[:, :1], cut)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "teacher.jsonl has no rows"),
        (ROWS[:2], "has 2 rows, the split 3: .* not complete"),
        ([*ROWS[:2], json.dumps(ROWS[2])[:40]], "teacher.jsonl:3: malformed JSON"),
        ([ROWS[0], ROWS[2]], "teacher.jsonl:2: index is 2, but 1 comes next"),
        ([ROWS[0], ROWS[0]], "teacher.jsonl:2: index is 0, but 1 comes next"),
        ([{"index": 0, "sample": 0}], "no field 'target_tokens': .* --top_k_log_probs K"),
        ([line(0, [1], sample=None)], ":1: sample is None"),
        ([{**ROWS[0], "index": True}], ":1: index is True"),
        ([line(0, [])], ":1: target_tokens is not a list of numbers"),
        ([line(0, [1], target_tokens=[1.5])], "target_tokens is not a list of numbers"),
        ([line(0, [1], target_top_ids=[[1, 2], [3]])], "target_top_ids is not lists, of one"),
        ([line(0, [1], target_top_ids=[[1.5, 2]])], "target_top_ids is not lists"),
        ([line(0, [1], target_top_log_probs=[[-1.0, None]])], "target_top_log_probs is not lists"),
        ([line(0, [1], target_top_log_probs=[[-1.0, math.nan]])], "hold more than probability 1"),
        ([line(0, [1], target_top_log_probs=[[-0.5, -0.5]])], "hold more than probability 1"),
        ([line(0, [1], target_top_log_probs=[[-1.0]])], r"shape \(1, 1\), needs \(1, 2\)"),
        ([line(0, [2, 1], target_top_ids=[[1, 2]])], r"shape \(1, 2\), needs \(2, 2\)"),
        (
            [ROWS[0], line(1, [1], target_top_ids=[[1]], target_top_log_probs=[[-1.0]])],
            r":2: target_top_ids has shape \(1, 1\), needs \(1, 2\)",
        ),
        ([line(0, [1], target_top_ids=[[1, 101]])], "an id is not in 0 … 100"),
        ([line(0, [1], target_top_ids=[[1, -1]])], "an id is not in 0 … 100"),
        ([line(0, [1 << 40])], "an id is not in 0 … 100"),
        ([line(0, [1], target_top_ids=[[3, 3]])], "name an id twice"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(written, rows, message):
    with pytest.raises(ValueError, match=message) as caught:
        OfflineTeacher.read(written(rows), 3, rows=3, vocabulary_size=101)
    assert "\n" not in str(caught.value) and "teacher.jsonl" in str(caught.value)


def test_a_file_cut_short_or_missing_is_refused(written, tmp_path):
    path = written(ROWS, "t.jsonl.gz")
    whole = (tmp_path / "t.jsonl.gz").read_bytes()
    (tmp_path / "t.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match="t.jsonl.gz: damaged gzip|t.jsonl.gz:.*malformed JSON"):
        OfflineTeacher.read(path, 3)
    with pytest.raises(FileNotFoundError, match="TEACHER_TOP_K_FILE .*no.jsonl does not exist"):
        OfflineTeacher.read(str(tmp_path / "no.jsonl"), 3)
    with pytest.raises(ValueError, match="target_length=0"):
        OfflineTeacher.read(path, 0)
