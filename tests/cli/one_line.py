"""The check that an error is one line of stderr."""


def assert_one_line(error, *parts):
    """The whole of stderr is one `gkd: error:` line that holds the parts."""
    assert error.count("\n") == 1 and error.endswith("\n"), error
    assert error.startswith("gkd: error: "), error
    for part in parts:
        assert part in error, error
