"""Metrics and votes of a task."""

import pytest

from gkd.data import sources, tasks
from gkd.data.task_spec import TfdsData, TsvFormat, task_source
from gkd.metrics import metrics
from tests.data.small_texts import BYTES


def test_votes_and_diversity_of_a_task():
    task = tasks.arithmetic()
    # The calculator makes 3 + 4 = 8 a vote for 7; the reference is taken as it is written.
    samples = [["3 + 4 = 8 #### 8", "#### 7", "#### 9"], ["#### 5"] * 3]
    scores = task.evaluate_samples(["3 + 4 = 7 #### 7", "2 + 2 = 5 #### 5"], samples)
    assert scores["maj@3"] == scores["pass@3"] == 100.0
    assert scores["pass@1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert scores["distinct_1"] == pytest.approx(100 * (8 / 11 + 2 / 6) / 2)
    assert 50 < scores["self_bleu"] < 100
    assert set(tasks.arithmetic().evaluate_samples(["1"], [["1"]])) == {
        "maj@1", "pass@1", "distinct_1", "distinct_2", "distinct_samples",
    }  # fmt: skip
    plain = tasks.translation(vocabulary=BYTES)
    assert not any(key.startswith("maj") for key in plain.evaluate_samples(["a"], [["a", "b"]]))


def test_metrics_of_a_task():
    assert tasks.arithmetic().evaluate(["#### 1", "#### 2"], ["#### 1", "#### 3"]) == {
        "exact_match": 50.0,
        "exact_match_calculator": 50.0,
    }
    task = tasks.translation(vocabulary=BYTES, metric_fns=[metrics.bleu, metrics.rouge])
    assert set(task.evaluate(["a b"], ["a b"])) == {"bleu", "rouge1", "rouge2", "rouge_l"}


def test_files_are_read_in_their_format(tmp_path):
    (tmp_path / "a.tsv").write_text("x\\ny\tz\n")
    tsv = TsvFormat(columns=("input", "target"), escapes=True)
    source = task_source({"train": "a.tsv"}, ("input", "target"), str(tmp_path), tsv, None, None)
    (row,) = source.get_dataset("train", shuffle=False).as_numpy_iterator()
    assert row == {"input": b"x\ny", "target": b"z"}
    (tmp_path / "b.tsv").write_text('x;"y"\n')
    task = tasks.local_text(
        {"train": str(tmp_path / "b.tsv")}, vocabulary=BYTES, columns=("input", "target"),
        delimiter=";", quoting=False,
    )  # fmt: skip
    (row,) = task.task.source.get_dataset("train", shuffle=False).as_numpy_iterator()
    assert row == {"input": b"x", "target": b'"y"'}


@pytest.mark.parametrize(
    ("splits", "want"), [(None, {"train", "validation", "test"}), ({"test": "test[:5]"}, {"test"})]
)
def test_splits_of_tfds(splits, want, monkeypatch):
    seen = {}
    monkeypatch.setattr(sources, "tfds_source", lambda *given: seen.update(given=given))
    task_source(None, ("a",), None, None, TfdsData(name="xsum:1.1.0", splits=splits), 7)
    name, found, most = seen["given"]
    assert (name, set(found), most) == ("xsum:1.1.0", want, 7)


def test_a_number_of_rows_is_at_least_one():
    with pytest.raises(ValueError, match="max_examples=0 must be at least 1"):
        task_source({"train": "a.tsv"}, ("a",), None, None, None, 0)
