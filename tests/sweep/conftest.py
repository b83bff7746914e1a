"""A small grid, for all tests of this folder."""

from tests.sweep.sweeping import grid  # noqa: F401
