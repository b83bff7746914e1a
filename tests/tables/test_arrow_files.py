"""Parquet, Arrow and saved data sets, as pyarrow writes them and datasets lays them out."""

import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from gkd.tables import arrow_files
from gkd.tables.fields import text_of
from gkd.tables.rows import placed_rows, read_rows

TABLE = pa.table(
    {
        "plain": ["x", "y", "z"],
        "large": pa.array(["a", "b", None], pa.large_string()),
        "dictionary": pa.array(["u", "v", "u"]).dictionary_encode(),
        "view": pa.array(["1", "2", "3"], pa.string_view()),
        "binary": pa.array(["é".encode(), b"\xff", b""]),
        "nested": [{"en": "hi", "l": ["r", "s"]}, {"en": "ho", "l": ["t"]}, {"en": "", "l": []}],
        "nested.en": ["dot"] * 3,
        "int": [1, None, 3],
        "single": pa.array([0.1, 1, 1e-8], pa.float32()),
        "half": pa.array([np.float16(0.1)] * 3, pa.float16()),
        "double": [0.1, 2.0, 1e300],
        "decimal": [decimal.Decimal("1.20")] * 3,
        "time": pa.array([1, 2, 3], pa.timestamp("ns")),
        "date": [datetime.date(2020, 1, 2)] * 3,
        "truth": [True, False, True],
    }
)


def stream(path, table, rows=2):
    with pa.OSFile(str(path), "wb") as file, ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def write(path):
    if path.suffix.lower() == ".parquet":
        parquet.write_table(TABLE, path, row_group_size=2)
    elif path.name == "file.arrow":
        with pa.OSFile(str(path), "wb") as file, ipc.new_file(file, TABLE.schema) as writer:
            writer.write_table(TABLE, max_chunksize=1)
    else:
        stream(path, TABLE)
    return str(path)


@pytest.mark.parametrize("name", ["a.parquet", "A.PARQUET", "file.arrow", "stream.arrow"])
def test_all_columns_as_texts(tmp_path, name):
    path = write(tmp_path / name)
    rows = list(placed_rows(path))
    assert [where for where, _ in rows] == [f"{path}: row {i}" for i in (1, 2, 3)]
    names = [name for name in TABLE.column_names if name != "nested"]
    first = {name: text_of(rows[0][1], name, "") for name in names}
    assert first == {
        "plain": "x", "large": "a", "dictionary": "u", "view": "1", "binary": "é",
        "nested.en": "dot", "int": "1", "single": "0.1", "half": "0.1", "double": "0.1",
        "decimal": "1.20", "time": "1970-01-01 00:00:00.000000001", "date": "2020-01-02",
        "truth": "true",
    }  # fmt: skip
    assert [row["single"] for _, row in rows] == [0.1, 1.0, 1e-8]
    assert rows[1][1]["nested"] == {"en": "ho", "l": ["t"]}


def test_only_needed_columns_are_read(tmp_path):
    path = write(tmp_path / "a.parquet")
    row = next(arrow_files.arrow_rows(path, ("plain", "nested.l", "int")))[1]
    assert set(row) == {"plain", "nested", "int"}
    names = set(next(arrow_files.arrow_rows(path, ("plain", "nested.en")))[1])
    assert names == {"plain", "nested", "nested.en"}
    rows = read_rows(path, ("nested.en",), references=("plain",))
    assert rows == [{"nested.en": "dot", "plain": [text]} for text in "xyz"]
    with pytest.raises(ValueError, match="a.parquet: row 1: no field 'plan': did you mean 'plain'"):
        read_rows(path, ("plan",))
    for field, place in (("large", 3), ("int", 2)):
        with pytest.raises(ValueError, match=f"a.parquet: row {place}: field '{field}' is null"):
            read_rows(path, (field,))


def test_damage_and_other_kinds(tmp_path):
    write(tmp_path / "a.parquet")
    write(tmp_path / "stream.arrow")
    whole = {name: (tmp_path / name).read_bytes() for name in ("a.parquet", "stream.arrow")}
    for name, data in whole.items():
        kind = name.rpartition(".")[2].capitalize()
        for bad in (b"", data[: len(data) // 2], data[:-8], b"no such file", data[9:]):
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(ValueError, match=f"{name}: damaged {kind} file") as error:
                list(placed_rows(str(tmp_path / name)))
            assert "\n" not in str(error.value)
    (tmp_path / "b.arrow").write_bytes(whole["a.parquet"])
    with pytest.raises(ValueError, match="b.arrow is a Parquet file: name it .parquet"):
        list(placed_rows(str(tmp_path / "b.arrow")))
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid ...")
    with pytest.raises(ValueError, match="a.parquet is a Git LFS pointer"):
        list(placed_rows(str(tmp_path / "a.parquet")))
    stream(tmp_path / "b.arrow", pa.table([["1"], ["2"]], names=["q", "q"]))
    with pytest.raises(ValueError, match="b.arrow: two columns are named 'q'"):
        list(placed_rows(str(tmp_path / "b.arrow")))


def saved(folder, tables):
    """A folder as `save_to_disk` lays it out, one file per table."""
    folder.mkdir(parents=True)
    files = []
    for i, table in enumerate(tables):
        files.append({"filename": f"data-{i:05d}-of-{len(tables):05d}.arrow"})
        stream(folder / files[-1]["filename"], table)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))


def test_saved_data_sets(tmp_path):
    saved(tmp_path / "d" / "train", [TABLE.slice(0, 2), TABLE.slice(2, 1)])
    rows = read_rows(str(tmp_path / "d" / "train"), ("plain",))
    assert [row["plain"] for row in rows] == ["x", "y", "z"]
    with pytest.raises(ValueError, match="/d is no saved data set .state.json is missing."):
        read_rows(str(tmp_path / "d"), ("plain",))
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(ValueError, match="holds the splits train, test: .*d/train$"):
        read_rows(str(tmp_path / "d"), ("plain",))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", "state.json is damaged"),
        ("[]", "state.json is damaged"),
        ('{"_data_files": [1]}', "state.json is damaged: _data_files"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "names files outside of its folder"),
        ('{"_data_files": [{"filename": "no.arrow"}]}', "no.arrow does not exist"),
        ('{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}', "by an index"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path, state, message):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(placed_rows(str(tmp_path)))


@pytest.mark.parametrize(
    ("value", "kind", "read"),
    [
        ({"a": 0.1}, pa.struct([("a", pa.float32())]), {"a": 0.1}),
        ([0.1, None], pa.list_(pa.float32()), [0.1, None]),
        ([0.1, 2.0], pa.list_(pa.float16(), 2), [0.1, 2.0]),
        ({"a": 3}, pa.struct([("a", pa.timestamp("ns"))]), {"a": "1970-01-01 00:00:00.000000003"}),
        ([decimal.Decimal("1.20")], pa.large_list(pa.decimal128(3, 2)), ["1.20"]),
        ([{"d": [datetime.date(2020, 1, 2)]}], None, [{"d": ["2020-01-02"]}]),
        ([("en", 0.1)], pa.map_(pa.string(), pa.float32()), {"en": 0.1}),
        ([(b"k", b"v")], pa.map_(pa.binary(), pa.binary()), [{"key": b"k", "value": b"v"}]),
    ],
)
def test_nested_values_are_as_those_of_columns(tmp_path, value, kind, read):
    column = pa.array([value, None, value], kind)
    stream(tmp_path / "a.arrow", pa.table({"q": column}), rows=2)
    parquet.write_table(pa.table({"q": column}), tmp_path / "a.parquet")
    for name in ("a.arrow", "a.parquet"):
        rows = [row["q"] for _, row in arrow_files.arrow_rows(str(tmp_path / name))]
        assert rows == [read, None, read]


def test_kinds_of_columns_that_are_encoded_or_no_text(tmp_path):
    single = pa.array([0.1, 0.1], pa.float32())
    encoded = pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), single[:1])
    spans = pa.array([(1, 2, 3), None], pa.month_day_nano_interval())
    columns = {"d": single.dictionary_encode(), "r": encoded, "s": spans}
    stream(tmp_path / "a.arrow", pa.table(columns))
    rows = [row for _, row in arrow_files.arrow_rows(str(tmp_path / "a.arrow"))]
    assert [(row["d"], row["r"]) for row in rows] == [(0.1, 0.1)] * 2
    with pytest.raises(ValueError, match="field 's' is MonthDayNano, needs text"):
        text_of(rows[0], "s", "")
    pair = pa.StructArray.from_arrays([single, single], ["a", "a"])
    stream(tmp_path / "b.arrow", pa.table({"q": pair}))
    with pytest.raises(ValueError, match="two fields of an object have one name"):
        list(arrow_files.arrow_rows(str(tmp_path / "b.arrow")))
