"""Computes seeded permutations that are the same on every machine and for every NumPy version."""

from __future__ import annotations

import numpy as np


def permutation(rows: int, *words: int) -> np.ndarray:
    """Computes a pseudo-random order of `rows` indices, a pure function of its arguments.

    NumPy guarantees the raw bits of a bit generator for all versions, but not the algorithm of
    `Generator.permutation`. The raw bits are sorted here, so that an exact resume survives an
    upgrade.

    Args:
      rows: number of indices.
      *words: non-negative integers that select the permutation, e.g. seed and epoch.

    Returns:
      int64 [rows], each of 0 … rows−1 once.

    >>> permutation(6, 0, 1).tolist()
    [3, 4, 2, 1, 5, 0]
    """
    bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(rows)
    return np.argsort(bits, kind="stable")
