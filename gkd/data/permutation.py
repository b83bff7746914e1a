"""Seeded permutations that are the same on every machine and NumPy version."""

from __future__ import annotations

import numpy as np


def permutation(rows: int, *words: int) -> np.ndarray:
    """A pseudo-random order of `rows` indices, a pure function of its arguments.

    NumPy promises the raw bits of a bit generator for ever, not what `Generator.permutation`
    does with them, so the raw bits are sorted here: an exact resume must survive an upgrade.

    Args:
      rows: how many indices.
      *words: non-negative integers that select the permutation, e.g. seed and epoch.

    Returns:
      int64 [rows], each of 0 … rows−1 once.
    """
    bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(rows)
    return np.argsort(bits, kind="stable")
