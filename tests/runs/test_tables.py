"""Tables of text cells, in Markdown and on a terminal."""

import rich.console

from gkd.runs import tables
from gkd.runs.tables import markdown_table


def test_markdown_cells_cannot_break_the_table():
    text = markdown_table([{"a": "1|2", "b": "x\ny"}, {"a": "3"}])
    assert text == "| a | b |\n| --- | --- |\n| 1\\|2 | x y |\n| 3 |  |"


def test_a_terminal_s_numbers_end_at_the_right_and_long_text_is_folded():
    table = tables.terminal(
        ("name", "steps"), [("a", "9"), ("a long name", "10000")], left=("name",), foldable=()
    )
    console = rich.console.Console(width=40)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    assert [line.strip("│ ").split("│") for line in lines[3:5]] == [
        ["a           ", "     9"],
        ["a long name ", " 10000"],
    ]
