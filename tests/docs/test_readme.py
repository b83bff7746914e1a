"""The README names files that exist."""

import re

from tests.paths import REPOSITORY


def test_the_readme_is_finished_and_names_files_that_exist():
    text = (REPOSITORY / "README.md").read_text()
    assert "QUICKSTART_OUTPUT" not in text and "RESULT_TRANSLATION" not in text
    named = re.findall(r"(?:configs|launch|gkd)/[\w/.]+\.(?:gin|sh|py)", text)
    assert len(named) > 8
    missing = [name for name in named if not (REPOSITORY / name).is_file()]
    assert not missing
