"""CSV and TSV: the rules of RFC 4180 as Python's csv module writes them, and plain text."""

import csv
import io
import random

import pytest

from gkd.tables.delimited import TsvFormat, delimited_rows


def rows(path, text, **form):
    path.write_bytes(text.encode())
    return [list(row.values()) for _, row in delimited_rows(str(path), TsvFormat(**form))]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_csv_writes_is_read(tmp_path, name, end):
    delimiter = "," if name == "a.csv" else "\t"
    choice = random.Random(0).choice
    signs = 'ab",\t \\' + ("\r\n" if end == "\r\n" else end)  # the module quotes these only
    table = [["".join(choice(signs) for _ in range(5)) for _ in "xy"] for _ in range(900)]
    table.insert(0, ["", ""])
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    writer.writerows([["x", "y"], *table])
    assert rows(tmp_path / name, file.getvalue(), quoting=True) == table
    assert rows(tmp_path / name, file.getvalue().removesuffix(end), quoting=True) == table


def test_csv_as_people_write_it(tmp_path):
    path = tmp_path / "a.csv"
    text = 'x,y\n5" disk,"a ""b"", c"\n\n,"two\n\nlines"\n  \n'
    assert rows(path, text) == [['5" disk', 'a "b", c'], ["", "two\n\nlines"]]
    numbers = [number for number, _ in delimited_rows(str(path), TsvFormat())]
    assert numbers == [2, 4]  # of the first line of each
    assert rows(path, "x;y\n1,5;2\n", delimiter=";") == [["1,5", "2"]]
    assert rows(path, "sep=;\r\nx;y\r\n1,5;2\r\n") == [["1,5", "2"]]  # as for Excel
    assert [n for n, _ in delimited_rows(str(path), TsvFormat())] == [3]
    assert rows(path, "1,2\n", columns=("x", "y")) == [["1", "2"]]
    assert rows(path, "\ufeffx,y\r\n1,2\r\n") == [["1", "2"]]
    assert rows(path, ",x\n0,a\n1,b\n") == [["a"], ["b"]]  # an index without a name
    assert rows(path, 'x\n""\n\nb\n') == [[""], ["b"]]
    assert rows(path, "x,y\n") == rows(path, "") == []
    long = "word " * 40_000  # more than the csv module's own limit of 131072 characters
    assert rows(path, f'x,y\n"{long}",b\n') == [[long, "b"]]


def test_plain_text_keeps_every_quote(tmp_path):
    text = 'x\ty\n"a"\t""\n"open\tclosed"\n\\n\\t\t"\n'
    cells = [['"a"', '""'], ['"open', 'closed"'], ["\\n\\t", '"']]
    assert rows(tmp_path / "a.tsv", text, quoting=False) == cells
    assert rows(tmp_path / "a.csv", text.replace("\t", ","), quoting=False) == cells
    assert rows(tmp_path / "a.tsv", "x\ty\n\\n\\t\\theta\tb\n", escapes=True) == [
        ["\n\t\theta", "b"]
    ]
    one_or_two = 'x\ty\n1\t"a\nb\tc"\n'
    assert rows(tmp_path / "a.tsv", one_or_two, quoting=True) == [["1", "a\nb\tc"]]
    assert rows(tmp_path / "a.tsv", one_or_two, quoting=False) == [["1", '"a'], ["b", 'c"']]
    with pytest.raises(ValueError, match="a.tsv:2: .*QUOTING=True .* QUOTING=False"):
        rows(tmp_path / "a.tsv", one_or_two)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('x,y\n1,2\n"a" b,3\n', "a.csv:3: not by the rules .*QUOTING=False .*DELIMITER if ','"),
        ('x,y\n1,"never\nclosed\n', "a.csv:2: not by the rules of CSV .*up to line 3"),
        ("x,y\n1,2\n1,2,3\n", "a.csv:3: 3 columns, needs 2 .x, y.$"),
        ("x;y\n1;2\n1,5;2\n", "a.csv:3: 2 columns, needs 1 .x;y.: set DELIMITER=';'"),
        ('x;y\n"1";2\n', "a.csv:2: not by the rules .*set DELIMITER=';'$"),
        ("x,x\n1,2\n", "a.csv:1: two columns are named 'x'"),
        ("x,y\n1,2\0\n", "a.csv:2: a NUL character"),
    ],
)
def test_faults_name_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        rows(tmp_path / "a.csv", text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("delimiter", ["", ", ", '"', "\n"])
def test_a_delimiter_is_one_character(delimiter):
    with pytest.raises(ValueError, match="DELIMITER=.* is not one character"):
        TsvFormat(delimiter=delimiter)
