"""Tasks by the name of their gin file."""

import pytest

from gkd.configuration.gin_files import ConfigError
from gkd.configuration.task_files import read_task

FILE = "configs/tasks/arithmetic.gin"


def test_a_task_and_its_overrides():
    assert read_task(FILE).name == "arithmetic"
    assert read_task(FILE, ("MAX_EXAMPLES=7",)).max_examples == 7
    assert read_task(FILE).max_examples is None  # an earlier call leaves nothing behind


@pytest.mark.parametrize(
    ("file", "overrides", "message"),
    [
        ("configs/tasks/none.gin", (), "--task=configs/tasks/none.gin: no such file"),
        ("configs/models/t5_1_1_small.gin", (), "defines no TASK: name a file of configs/tasks/"),
        (FILE, ("MAX_EXAMPLE=7",), "did you mean MAX_EXAMPLES?"),
        (FILE, ("DIGITS=0",), "DIGITS is 0"),
    ],
)
def test_mistakes_are_one_line(file, overrides, message):
    with pytest.raises(ConfigError) as found:
        read_task(file, overrides)
    assert message in str(found.value) and "\n" not in str(found.value)
