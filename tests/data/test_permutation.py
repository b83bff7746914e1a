"""Pseudo-random orders of rows."""

import numpy as np

from gkd.data.permutation import permutation


def test_permutation_is_pinned():
    # From Philox's raw bits, which NumPy promises to keep; sorted here by Python.
    for words in ((0, 0), (0, 1), (7, 3)):
        bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(50).tolist()
        assert permutation(50, *words).tolist() == sorted(range(50), key=bits.__getitem__)
    assert permutation(8, 0, 0).tolist() != permutation(8, 0, 1).tolist()
