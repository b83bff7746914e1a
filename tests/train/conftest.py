"""Fixtures of runs: a folder for them, and a trained teacher in it."""

import pytest

from tests.compilation import devices
from tests.train import training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def no_evaluations():
    """Runs that do not evaluate."""
    with training.no_evaluations():
        yield


@pytest.fixture(scope="module")
def teacher(folder):
    with devices(1), training.no_evaluations():
        assert training.train(folder / "teacher", "TRAIN_STEPS=4") == 0
    return folder / "teacher"
