"""Paths that tests share: the repository and a gin file of a run that takes seconds."""

import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
TINY = str(REPOSITORY / "tests" / "train" / "tiny.gin")
