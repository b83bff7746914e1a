"""The arrays of a step folder: their shapes, their differences, and reading a part of them."""

import jax
import numpy as np

from gkd.checkpoints import arrays
from gkd.checkpoints.store import CheckpointStore


def struct(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_differences_are_listed_up_to_five_and_then_counted():
    saved = {"a": struct(2, 3), "b": struct(4), "left": struct(1)}
    wanted = {"a": struct(3, 2), "b": struct(4, dtype=np.int32), "missing": struct()}
    assert arrays.describe_differences(saved, saved, compare_types=True) is None
    assert arrays.describe_differences(saved, wanted, compare_types=True) == (
        "a has float32[2, 3], wanted float32[3, 2]; b has float32[4], wanted int32[4]; "
        "missing is missing; left is left over"
    )
    assert "b has" not in arrays.describe_differences(saved, wanted, compare_types=False)
    many = {str(i): struct() for i in range(8)}
    assert arrays.describe_differences({}, many, False).endswith(
        "4 is missing; and 3 more differences"
    )


def test_a_part_of_the_state_is_read_without_the_rest(tmp_path, make_state):
    with_store = CheckpointStore(tmp_path / "checkpoints")
    with_store.save(3, make_state(3))
    with_store.close()
    folder = tmp_path / "checkpoints" / "3"
    kernel = arrays.read_saved_shapes(folder)["params"]["encoder"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((16, 8), np.float32)
    wanted = {"params": {"encoder": {"kernel": np.zeros((16, 8), np.float32)}}}
    got = arrays.read_arrays(folder, wanted)["params"]["encoder"]["kernel"]
    np.testing.assert_array_equal(got, make_state(3).params["encoder"]["kernel"])
    assert isinstance(got, np.ndarray)
