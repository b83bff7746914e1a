"""Files come before TFDS, whose splits have a task's names unless told otherwise."""

import pytest

from gkd.data import sources
from gkd.data.task_sources import TfdsData, TsvFormat, task_source


def test_files_are_read_in_their_format(tmp_path):
    (tmp_path / "a.tsv").write_text("x\\ny\tz\n")
    tsv = TsvFormat(columns=("input", "target"), escapes=True)
    source = task_source({"train": "a.tsv"}, ("input", "target"), str(tmp_path), tsv, None, None)
    (row,) = source.get_dataset("train", shuffle=False).as_numpy_iterator()
    assert row == {"input": b"x\ny", "target": b"z"}


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
