"""The vocabulary that the shipped configurations name."""

import gin
import pytest


@pytest.fixture
def real_vocabulary(shared, monkeypatch):
    monkeypatch.setenv("GKD_VOCABULARY", str(shared / "data/t5_vocab/spiece.model"))
    yield
    gin.clear_config()
