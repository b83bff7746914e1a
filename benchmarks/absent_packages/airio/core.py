"""Stands for a package that T5X imports and that is on no index: every attribute is empty."""

from jestimator import __getattr__  # noqa: F401
