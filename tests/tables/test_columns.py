"""Columns of tables: repeated and absent names, ragged rows, the delimiter that was meant."""

import pytest

from gkd.tables.columns import check_columns, row_of
from gkd.tables.rows import placed_rows


def test_names_are_given_once():
    check_columns(["", "input", "target", ""], "a.csv:1")  # a table's index has no name
    with pytest.raises(ValueError, match="a.csv:1: two columns are named 'input'"):
        check_columns(["input", "", "input"], "a.csv:1")
    with pytest.raises(ValueError, match="a.csv:1: no column has a name"):
        check_columns(["", ""], "a.csv:1")


def test_a_row_has_a_cell_for_every_column():
    assert row_of(["", "input"], ["0", "x"], "a.csv:2") == {"input": "x"}
    with pytest.raises(ValueError, match=r"a.csv:2: 3 columns, needs 2 \(input, target\)$"):
        row_of(["input", "target"], ["1", "2", "3"], "a.csv:2")
    with pytest.raises(ValueError, match="needs 1 .input;target.: set DELIMITER=';'"):
        row_of(["input;target"], ["1", "5"], "a.csv:2")


def test_carriage_returns_as_line_ends_do_not_make_a_file_one_line_of_names(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"input\ttarget\ra\tb\rc\td\r")
    with pytest.raises(
        ValueError, match="a.tsv:1: the line with the columns' names holds carriage"
    ):
        list(placed_rows(str(tmp_path / "a.tsv")))
    (tmp_path / "a.csv").write_bytes(b"input,target\ra,b\rc,d\r")  # which csv reads
    assert len(list(placed_rows(str(tmp_path / "a.csv")))) == 2
