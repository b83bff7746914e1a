"""Columns of tables: repeated and absent names, ragged rows, the delimiter that was meant."""

import pytest

from gkd.tables.columns import check_columns, row_of


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
