"""JSON: lines, whole arrays, numbers as they are written, faults that name their place."""

import json

import pytest

from gkd.tables import json_files
from gkd.tables.fields import text_of

ROWS = [{"q": "a\u2028b", "n": 1}, {"q": "", "n": None}, {"q": "c", "n": [1.5]}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def read(path, text):
    path.write_text(text, encoding="utf-8")
    return [row for _, row in json_files.document_rows(str(path))]


@pytest.mark.parametrize(
    "text",
    [
        LINES, LINES + "\n\n", "\ufeff" + LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\n\ufeff"), json.dumps(ROWS), json.dumps(ROWS, indent=1),
        "\ufeff\n " + json.dumps(ROWS, indent=None), json.dumps({"v": 1, "data": ROWS}, indent=2),
        json.dumps({"data": ROWS}), "[\n" + ",\n".join(LINES.split("\n")) + "\n]\n",
    ],
)  # fmt: skip
def test_lines_and_documents_give_the_same_rows(tmp_path, text):
    assert read(tmp_path / "a.json", text) == ROWS


def test_one_object_is_one_row(tmp_path):
    for text in ('{"q": 1}', '{\n "q": 1\n}'):
        assert read(tmp_path / "a.json", text) == [{"q": 1}]
    assert read(tmp_path / "a.json", '{"q": "x", "data": [1]}') == [{"q": "x", "data": [1]}]
    assert read(tmp_path / "a.json", "") == read(tmp_path / "a.json", "[]") == []


def test_places(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"q": 1}\n\n{"q": 2}\n')
    assert [where for where, _ in json_files.document_rows(str(path))] == [
        f"{path}:1", f"{path}:3"
    ]  # fmt: skip
    path.write_text('[{"q": 1},\n\n{"q": 2}]')
    assert [where for where, _ in json_files.document_rows(str(path))] == [
        f"{path}: row 1", f"{path}: row 2"
    ]  # fmt: skip


def test_numbers_remember_how_they_are_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1.50, "m": 1e5, "i": 7}\n')
    ((_, row),) = json_files.json_rows(str(path), written=True)
    assert (row["n"].text, row["m"].text, row["i"]) == ("1.50", "1e5", 7)
    assert json.dumps(row) == '{"n": 1.5, "m": 100000.0, "i": 7}'  # and stay numbers
    ((_, row),) = json_files.json_rows(str(path))
    assert type(row["n"]) is float


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"q": 1}\n{"q": \n', "a.jsonl:2: malformed JSON"),
        ("a.jsonl", '{"q": 1}\n[{"q": 2}]\n', "a.jsonl:2: list, needs an object .*in a .json file"),
        ("a.json", '{"q": 1}\n{"q": \n', "a.json:2: malformed JSON"),
        ("a.json", '[{"q": 1},\n{"q": 2', "a.json: malformed JSON .*line 2"),
        ("a.jsonl", '{\n"q": 1}\n', "a.jsonl:1: malformed JSON .*: every line must hold one whole"),
        ("a.json", '[{"q": 1}, 2]', "a.json: row 2: int, needs an object"),
        ("a.json", '[[{"q": 1}]]', "a.json: row 1: list, needs an object with fields$"),
        ("a.json", '"text"', "a.json: str, needs an array of objects"),
        ("a.json", "[" * 100_000, "a.json: malformed JSON"),
    ],
)
def test_faults_name_their_place(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    reader = json_files.json_rows if name == "a.jsonl" else json_files.document_rows
    with pytest.raises(ValueError, match=message) as error:
        list(reader(str(path)))
    assert "\n" not in str(error.value)


def test_numbers_that_python_would_change_or_refuse(tmp_path):
    path, digits = tmp_path / "a.jsonl", "9" * 5000
    path.write_text(f'{{"zero": -0, "many": {digits}, "large": 1e400, "odd": 9007199254740993}}\n')
    ((_, row),) = json_files.json_rows(str(path), written=True)
    texts = [text_of(row, name, "") for name in row]
    assert texts == ["-0", digits, "1e400", "9007199254740993"]


def test_a_key_twice_is_refused(tmp_path):
    for name, text in (
        ("a.jsonl", '{"q": 1}\n{"q": {"r": 1, "r": 2}}'),
        ("a.json", '[{"r":1,"r":1}]'),
    ):
        (tmp_path / name).write_text(text)
        reader = json_files.json_rows if name == "a.jsonl" else json_files.document_rows
        with pytest.raises(ValueError, match="malformed JSON .it has the key 'r' twice"):
            list(reader(str(tmp_path / name)))
