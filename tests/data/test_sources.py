"""Sources of rows: slices, subsets, references, relative paths, the order of permutations."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from gkd.data import sources


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_made_in_python_are_checked_too():
    source = sources.rows_source(lambda split: [{"q": "a"}, {"q": "\ud800"}], ("q",), ("dev",))
    with pytest.raises(ValueError, match="split 'dev', row 1: field 'q' is no valid text"):
        source.get_dataset("dev", shuffle=False)


def test_the_directory_of_relative_paths(monkeypatch):
    monkeypatch.setenv("GKD_DATA", "/from/environment")
    assert sources.resolved("a.tsv") == "/from/environment/a.tsv"
    assert sources.resolved("a.tsv", "/given") == "/given/a.tsv"
    assert sources.resolved("/absolute/a.tsv", "/given") == "/absolute/a.tsv"
    monkeypatch.delenv("GKD_DATA")
    assert sources.resolved("a.tsv") == "a.tsv"


def values(source, split):
    dataset = source.get_dataset(split, shuffle=False)
    return [int(row["q"]) for row in dataset.as_numpy_iterator()]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "shards", "folder"])
def test_slices_of_every_format_are_those_of_lines(tmp_path, kind):
    """The same texts in the same order, so that positions, hosts and offline teachers agree."""
    rows = [{"q": str(i * 7 % 100)} for i in range(100)]
    table = pa.Table.from_pylist(rows)
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("q\n" + "".join(row["q"] + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps([{"q": int(row["q"])} for row in rows]))
    elif kind == "parquet":
        parquet.write_table(table, path, row_group_size=7)
    elif kind == "shards":
        for i in range(4):
            parquet.write_table(table.slice(i * 25, 25), tmp_path / f"s-{i}-of-4.parquet")
        path = tmp_path / "s-*.parquet"
    else:
        path.mkdir()
        (path / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
        with ipc.new_stream(path / "x.arrow", table.schema) as writer:
            writer.write_table(table, 9)
    lines = jsonl(tmp_path / "a.jsonl", rows)
    for part in ("", "[:-20]", "[-20:]", "[3:40]"):
        for most in (None, 13):
            want, found = (
                values(sources.files_source({"train": f"{file}{part}"}, ("q",), None, None, most),
                       "train")
                for file in (lines, path)
            )  # fmt: skip
            assert want == found and len(want) == len(rows[slice(*bounds(part))][:most])


def bounds(part):
    return [int(x) if x else None for x in part.strip("[]").split(":")] if part else [None]


def test_several_references_are_a_column_of_their_own(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": "x", "a": ["1", 2]}, {"q": "y", "a": "3"}])
    one = jsonl(tmp_path / "b.jsonl", [{"q": "x", "a": ["1"]}, {"q": "y", "a": "3"}])
    source = sources.files_source({"dev": path, "test": one}, ("q", "a"), target_field="a")
    rows = list(source.get_dataset("dev", shuffle=False).as_numpy_iterator())
    assert [row["a"] for row in rows] == [b"1", b"3"]
    assert [json.loads(row[sources.REFERENCES]) for row in rows] == [["1", "2"], ["3"]]
    rows = list(source.get_dataset("test", shuffle=False).as_numpy_iterator())
    assert rows == [{"q": b"x", "a": b"1"}, {"q": b"y", "a": b"3"}]
    with pytest.raises(ValueError, match="a.jsonl:1: field 'a' is a list, needs text"):
        sources.files_source({"dev": path}, ("q", "a")).get_dataset("dev", shuffle=False)


def test_slices_and_subsets(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": str(i)} for i in range(100)])
    files = {"train": f"{path}[:-20]", "validation": f"{path}[-20:]", "test": path}
    source = sources.files_source(files, ("q",))
    assert values(source, "train") == list(range(80))
    assert values(source, "validation") == list(range(80, 100))
    assert values(source, "test") == list(range(100))
    few, more = (
        values(sources.files_source(files, ("q",), max_examples=n), "train") for n in (10, 40)
    )
    assert (len(few), len(more)) == (10, 40)
    assert few == sorted(few) != list(range(10))
    assert set(few) < set(more) < set(range(80))
    # Spread over the file: the mean of 40 of 0 … 79 is 39.5 ± 3.7 · 0.7.
    assert abs(np.mean(more) - 39.5) < 8
    assert values(sources.files_source(files, ("q",), max_examples=10), "validation") == list(
        range(80, 100)
    )


def test_empty_slice_is_an_error(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": "1"}])
    with pytest.raises(ValueError, match=r"a.jsonl\[5:\] has no rows"):
        values(sources.files_source({"train": f"{path}[5:]"}, ("q",)), "train")


def test_any_name_of_a_file_is_followed_by_a_slice(tmp_path):
    path = jsonl(tmp_path / "a[1]\n.jsonl", [{"q": "1"}, {"q": "2"}])
    assert sources.configured_rows(f"{path}[1:]", ("q",)) == [{"q": "2"}]


def test_permutation_is_pinned():
    # From Philox's raw bits, which NumPy promises to keep; sorted here by Python.
    for words in ((0, 0), (0, 1), (7, 3)):
        bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(50).tolist()
        assert sources.permutation(50, *words).tolist() == sorted(range(50), key=bits.__getitem__)
    assert sources.permutation(8, 0, 0).tolist() != sources.permutation(8, 0, 1).tolist()
