"""The facts about a data file that `new` shows: columns, rows, lengths."""

import json

import numpy as np
import pytest

from gkd.errors import InvalidFile
from gkd.new import data_facts
from gkd.tables.delimited import TsvFormat
from gkd.vocabularies import vocabularies


def test_columns_are_those_of_the_first_row_nested_ones_by_dots(tmp_path, monkeypatch):
    row = {"id": 1, "translation": {"en": "Hello", "de": "Hallo"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("GKD_DATA", str(tmp_path))
    names = data_facts.columns("a.jsonl", TsvFormat())
    assert names == ["id", "translation", "translation.en", "translation.de"]


@pytest.mark.parametrize(("name", "text"), [("a.csv", "a,b\n"), ("a.jsonl", ""), ("a.json", "[]")])
def test_a_file_without_rows_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidFile, match="has no rows"):
        data_facts.columns(str(tmp_path / name), TsvFormat())
    with pytest.raises(InvalidFile, match="has no rows"):
        data_facts.read_pairs(str(tmp_path / name), "a", "b", TsvFormat())


def test_all_rows_are_counted_and_the_first_ones_read(tmp_path, monkeypatch):
    monkeypatch.setattr(data_facts, "MEASURED_ROWS", 2)
    rows = [{"q": f"ü{i}", "a": ["first", "second"] if i else "only"} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = data_facts.read_pairs(str(tmp_path / "a.jsonl"), "q", "a", TsvFormat())
    assert pairs == data_facts.Pairs(5, ("ü0", "ü1"), ("only", "first"))


def test_a_missing_column_suggests_the_likely_one(tmp_path):
    (tmp_path / "a.csv").write_text("Text;date\nx;y\n")
    form = TsvFormat(delimiter=";")
    with pytest.raises(InvalidFile, match="did you mean 'Text'"):
        data_facts.read_pairs(str(tmp_path / "a.csv"), "text", "date", form)


@pytest.mark.parametrize("rows", [1, 2, 99, 100, 101, 5000])
def test_lengths_are_numpys_percentiles(rows):
    lengths = np.random.default_rng(rows).integers(1, 400, rows)
    found = data_facts.measure(vocabularies.byte_level(), ["x" * n for n in lengths])
    ends = lengths + 1  # with EOS
    assert found.median == np.percentile(ends, 50, method="lower")
    assert found.percentile == np.percentile(ends, 99, method="higher")
    assert found.longest == ends.max()
    assert found.limit % 8 == 0 and 0 <= found.limit - found.percentile < 8


def test_a_vocabulary_that_is_not_there_has_a_reason(tmp_path):
    vocabulary, reason = data_facts.load_vocabulary(str(tmp_path))
    assert vocabulary is None and "no tokenizer" in reason
