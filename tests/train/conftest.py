"""Fixtures of runs: a folder for them, and a trained teacher in it."""

import pytest

from tests.train.training import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def teacher(folder):
    assert train(folder / "teacher", "TRAIN_STEPS=4") == 0
    return folder / "teacher"
