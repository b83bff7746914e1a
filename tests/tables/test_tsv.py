"""Tab-separated rows: raw cells untouched, quoted ones as Python's csv module writes them."""

import csv
import io
import random

import pytest

from gkd.tables.tsv import tsv_rows


def rows(text, columns=None):
    """The cells of a text's rows."""
    lines = enumerate(text.removesuffix("\n").split("\n"), start=1)
    return [list(row.values()) for _, row in tsv_rows(lines, "a.tsv", columns)]


@pytest.mark.parametrize(
    "cell",
    [r"Find $\theta$ and $\nabla f$", r"C:\temp\new", '5" pipe', '"So," he said', '"a" or "b"',
     '"open', 'closed"', "", " ", "a\\", '"'],
)  # fmt: skip
def test_a_raw_cell_is_left_alone(cell):
    assert rows(f"q\ta\n{cell}\tx\ny\t{cell}\n") == [[cell, "x"], ["y", cell]]


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('"He said ""hi"""\t"Yes."', ['He said "hi"', "Yes."]),
        ('"a\tb"\tc', ["a\tb", "c"]),
        ('""\t""""', ["", '"']),
        ('x\t"line one\n\nline two"', ["x", "line one\n\nline two"]),
        ('"def f():\n\treturn 1\n"\tok', ["def f():\n\treturn 1\n", "ok"]),
        ('"a\nb"\t"c\nd"', ["a\nb", "c\nd"]),
    ],
)
def test_a_quoted_cell_is_read(line, cells):
    assert rows(f"q\ta\n{line}\nnext\trow\n") == [cells, ["next", "row"]]


def test_tabs_decide_where_quotes_do_not_fit():
    assert rows('a\tb\tc\n"x\ty"\tz\n"x\ty"\tz\tw\n') == [['"x', 'y"', "z"], ["x\ty", "z", "w"]]


def test_empty_cells_are_a_row_and_blank_lines_none():
    text = "q\ta\nfirst\tA\n\t\n\n  \nthird\tC\n"
    assert rows(text) == [["first", "A"], ["", ""], ["third", "C"]]
    numbers = [number for number, _ in tsv_rows(enumerate(text.split("\n"), 1), "a.tsv")]
    assert numbers == [2, 3, 6]
    assert rows("q\nfirst\n\nthird\n\n") == [["first"], [""], ["third"]]  # one column: line n
    assert rows("a\tb\n", ("x", "y")) == [["a", "b"]]


def test_two_columns_of_one_name_are_refused():
    for text, columns in (("q\tq\n1\t2\n", None), ("1\t2\n", ("q", "q"))):
        with pytest.raises(ValueError, match="a.tsv.*: two columns are named 'q'"):
            rows(text, columns)


def test_what_may_be_one_row_or_several_is_refused():
    with pytest.raises(ValueError, match="a.tsv:2: a cell opens a quote that line 3 closes"):
        rows('q\ta\nx\t"def f():\n\treturn 1"\n')
    with pytest.raises(ValueError, match="a.tsv:2: 1 columns, needs 2"):
        rows('q\ta\n"never closed\nx\ty\n')


def test_what_csv_writes_is_read_or_refused_never_misread():
    choice = random.Random(0).choice
    refused = 0
    for _ in range(500):
        table = [["".join(choice('ab"\t\n \\') for _ in range(4)) for _ in "xy"] for _ in range(3)]
        file = io.StringIO()
        writer = csv.writer(file, "excel-tab", lineterminator="\n")
        writer.writerows([["x", "y"], *table])
        try:
            assert rows(file.getvalue()) == table
        except ValueError:
            refused += 1
    assert refused < 150  # so many have a line that is a row by itself
