"""The table of where each cell stands."""

import pathlib

from tests.sweep.sweeping import rows_of


def test_the_status_says_what_is_complete(grid, capsys):
    pathlib.Path("fail").write_text("out/sft/1")
    assert grid() == 1
    capsys.readouterr()
    assert grid("ACTION='status'") == 0
    assert rows_of(capsys.readouterr().out) == [
        ["sft/0", "complete", "40/40"], ["sft/1", "open", "0/30"],
        ["jsd_0.1/0", "complete", "40/40"], ["jsd_0.1/1", "complete", "30/30"],
    ]  # fmt: skip
