"""Copies of the table: found where they are equal, refused where they differ."""

import numpy as np
import pytest

from gkd.hugging_face.copies import find_copies
from gkd.tensor_files.tensor import Tensor


def tensor(values):
    array = np.array(values, np.float32)
    return Tensor(array.shape, array.dtype, "a", lambda: array)


def test_equal_tensors_are_copies_and_others_are_refused():
    files = {"table": tensor([1, 2]), "head": tensor([1, 2]), "other": tensor([1, 3])}
    assert find_copies(files, "table", ("head", "absent"), "a") == ("head",)
    with pytest.raises(ValueError, match="a: other is tied to table"):
        find_copies(files, "table", ("other",), "a")
