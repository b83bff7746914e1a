"""Rows of every format: the same rows, whatever the file; patterns of names; one line per fault."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from gkd.tables.delimited import TsvFormat
from gkd.tables.rows import data_files, read_rows

ROWS = [{"q": 'é, "x"', "a": "1"}, {"q": "two\nlines", "a": ""}, {"q": "", "a": "3"}]


def content(suffix):
    if suffix in (".csv", ".tsv"):
        file = io.StringIO()
        writer = csv.DictWriter(file, ["q", "a"], delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(ROWS)
        return file.getvalue().encode()
    if suffix == ".parquet":
        file = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(ROWS), file)
        return file.getvalue()
    return json.dumps(ROWS).encode() if suffix == ".json" else "".join(
        json.dumps(row) + "\n" for row in ROWS
    ).encode()  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.JSONL", "a.ndjson", "a.jsonlines", "a.json", "a.csv", "a.CSV", "a.tsv",
     "a.parquet", "a.b.csv"],
)  # fmt: skip
def test_every_format_gives_the_same_rows(tmp_path, name):
    data = content("." + name.lower().rpartition(".")[2])
    (tmp_path / name).write_bytes(data)
    assert read_rows(str(tmp_path / name), ("q", "a")) == ROWS
    if not name.endswith("parquet"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        assert read_rows(str(tmp_path / f"{name}.gz"), ("a",)) == [{"a": r["a"]} for r in ROWS]


def test_patterns_take_files_by_name(tmp_path):
    for i in (10, 2, 1):
        path = tmp_path / f"train-{i:02d}[x].jsonl"
        path.write_text(json.dumps({"q": i}) + "\n")
    (tmp_path / "train-00.d").mkdir()
    rows = read_rows(str(tmp_path / "train-*[x].jsonl"), ("q",))
    assert [row["q"] for row in rows] == ["1", "2", "10"]
    assert len(data_files(str(tmp_path / "train-0?*.jsonl"))) == 2
    with pytest.raises(FileNotFoundError, match="no data file matches .*/dev-.*"):
        data_files(str(tmp_path / "dev-*"))
    (tmp_path / "what*.jsonl").write_text('{"q": "a file of this name"}\n')
    assert len(read_rows(str(tmp_path / "what*.jsonl"), ("q",))) == 1


def test_lists_and_references(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": 1, "c": ["x", 2]}\n{"q": ["y", "z"], "c": []}\n')
    assert read_rows(str(tmp_path / "a.jsonl"), (), ("c",), ("q",)) == [
        {"c": ["x", "2"], "q": ["1"]}, {"c": [], "q": ["y", "z"]}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"q": "x"}\n\n{"q": null}\n', "a.jsonl:3: field 'q' is null"),
        ("a.jsonl", '{"q": ""}\n{"a": "1", "b": ""}\n', "a.jsonl:2: no field 'q'.* has a, b"),
        ("a.json", '[{"q": ""}, {"a": "1"}]', "a.json: row 2: no field 'q'"),
        ("a.csv", "q,a\n1,2\n1\n", "a.csv:3: 1 columns, needs 2"),
        ("a.tsv", "a\tb\n1\t2\n", "a.tsv:2: no field 'q'; the row has a, b"),
        ("a.csv", "a;q\n1;2\n", "a.csv:2: no field 'q'.*set DELIMITER=';'"),
        ("a.txt", "", "a.txt is none of .jsonl, .ndjson, .jsonlines, .json, .csv, .tsv"),
        ("a.parquet.gz", "", "a.parquet.gz is none of"),
        ("a", "", "a is none of"),
    ],
)
def test_faults_name_file_place_and_field(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_rows(str(tmp_path / name), ("q",))
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="does not exist.*GKD_DATA"):
        read_rows(str(tmp_path / f"no-{name}"), ("q",))


def test_the_small_inputs_that_failed(shared):
    cases = shared / "cases" / "text"
    both = ("input", "target")
    assert read_rows(str(cases / "latex.tsv"), both) == [
        {"input": r"Find $\theta$ and $\nabla f$", "target": r"C:\temp\new"}
    ]
    for name in ("bom.jsonl", "bom.tsv"):
        assert read_rows(str(cases / name), both) == [{"input": "a", "target": "b"}]
    form = TsvFormat(columns=both)
    assert read_rows(str(cases / "bom_nohdr.tsv"), both, form=form) == [
        {"input": "a", "target": "b"}
    ]
    assert [row["target"] for row in read_rows(str(cases / "mis.tsv"), both)] == ["A", "", "C"]
    with pytest.raises(ValueError, match="surrogate.jsonl:6: field 'input' is no valid text"):
        read_rows(str(cases / "surrogate.jsonl"), both)


def test_the_shared_files_are_read_whole(shared):
    data = shared / "data"
    columns = ("question", "answer", "rationale")
    counts = {  # from the data's READMEs
        ("tatoeba_en_de/train.jsonl", ("en", "de"), None): 48486,
        ("debian_synopsis/val.jsonl.gz", ("document", "summary"), None): 691,
        ("gsm8k/test.jsonl", ("question", "answer"), None): 1319,
        ("flan_cot/gsm8k_train.tsv.gz", columns, columns): 7473,
        ("mgsm_en_de/mgsm_de.tsv", ("question", "answer"), ("question", "answer")): 250,
    }
    for (name, fields, names), count in counts.items():
        form = TsvFormat(columns=names)
        assert len(read_rows(str(data / name), fields, form=form)) == count


def test_a_pattern_leaves_no_broken_link_out(tmp_path):
    (tmp_path / "a-1.jsonl").write_text('{"q": 1}')
    (tmp_path / "a-2.jsonl").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="a-2.jsonl does not exist"):
        data_files(str(tmp_path / "a-*.jsonl"))


def test_an_address_is_no_local_file():
    with pytest.raises(FileNotFoundError, match="https://host/a.csv is an address: download it"):
        data_files("https://host/a.csv")
