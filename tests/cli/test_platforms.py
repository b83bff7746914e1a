"""libtpu without a TPU is not asked for chips; a TPU, another plug-in or a choice is left alone."""

import importlib.machinery
import importlib.util

import pytest

from gkd.cli.platforms import skip_absent_tpus


@pytest.fixture
def installed(monkeypatch):
    """The modules that seem to be installed."""
    names = {"libtpu"}
    spec = importlib.machinery.ModuleSpec
    found = lambda name: spec(name, None) if name in names else None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", found)
    return names


@pytest.fixture
def pci(tmp_path):
    (tmp_path / "0000:00:01").mkdir()
    (tmp_path / "0000:00:01" / "vendor").write_text("0x8086\n")
    return tmp_path


def chosen(pci, **environment):
    skip_absent_tpus(environment, pci)
    return environment


def test_libtpu_without_a_chip(installed, pci):
    assert chosen(pci) == {"JAX_PLATFORMS": "cpu"}
    assert chosen(pci, JAX_PLATFORMS="") == {"JAX_PLATFORMS": "cpu"}


def test_a_chip_is_used(installed, pci):
    (pci / "0000:00:02").mkdir()
    (pci / "0000:00:02" / "vendor").write_text("0x1ae0\n")
    assert chosen(pci) == {}


def test_a_choice_stays(installed, pci):
    assert chosen(pci, JAX_PLATFORMS="tpu,cpu") == {"JAX_PLATFORMS": "tpu,cpu"}


def test_without_libtpu_or_with_another_plug_in_jax_chooses(installed, pci):
    installed.add("jax_plugins")
    assert chosen(pci) == {}
    installed -= {"jax_plugins", "libtpu"}
    assert chosen(pci) == {}
