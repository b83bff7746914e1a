"""Arrays that are read in groups: which calls are made, and what stays in memory."""

import numpy as np

from gkd.checkpoints.grouped_reads import GroupedReads

SIZES = {"a": 2, "b": 3, "c": 1, "large": 9, "d": 4, "e": 2}


def reads():
    """The reader of groups of up to 5 bytes, and the calls that it makes."""
    calls = []

    def read(names):
        calls.append("".join(names))
        return {name: np.array([ord(name[0]), len(calls)]) for name in names}

    return GroupedReads(read, SIZES, group_bytes=5), calls


def test_neighbours_are_read_together_and_every_array_once():
    reader, calls = reads()
    found = {name: int(reader.read(name)[0]) for name in SIZES}
    assert found == {name: ord(name[0]) for name in SIZES}
    assert calls == ["ab", "c", "large", "d", "e"]


def test_an_array_that_is_wanted_again_is_read_again():
    reader, calls = reads()
    assert [int(reader.read(name)[1]) for name in ("a", "b", "a", "b", "c", "a")] == [
        1,
        1,
        2,
        2,
        3,
        4,
    ]
    assert calls == ["ab", "ab", "c", "ab"]


def test_what_was_not_wanted_goes_when_another_group_comes():
    reader, calls = reads()
    for name in ("a", "c", "b"):
        reader.read(name)
    assert calls == ["ab", "c", "ab"]
