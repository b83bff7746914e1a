"""Named tensors of a checkpoint: their names, shapes, layers and values."""

import numpy as np
import pytest

from gkd.checkpoints import tensors
from gkd.tensor_files.tensor import Tensor
from tests.checkpoints.t5x_checkpoints import TINY, random_params


def test_names_and_nested_dictionaries_are_inverse():
    tree = {"encoder": {"norm": {"scale": 1}, "kernel": 2}}
    named = {"encoder/norm/scale": 1, "encoder/kernel": 2}
    assert tensors.tensor_names(tree) == named and tensors.nest(named) == tree


def test_shapes_are_those_of_the_design_for_every_layer():
    shapes = TINY.parameter_shapes()
    assert shapes["token_embedder/embedding"] == (24, 8)
    assert shapes["decoder/layers_1/encoder_decoder_attention/query/kernel"] == (8, 6)
    assert shapes["encoder/layers_0/mlp/wo/kernel"] == (10, 8)
    assert "encoder/layers_1/mlp/wo/kernel" not in shapes
    assert tensors.layer_count(shapes, "decoder") == 2


def test_misfits_are_one_line_that_counts_them():
    named = tensors.as_tensors(random_params(TINY))
    tensors.check_tensors(named, TINY, "a")
    del named["encoder/encoder_norm/scale"]
    named["more"] = named["decoder/decoder_norm/scale"]
    with pytest.raises(
        ValueError, match="missing: encoder/encoder_norm/scale; left over: "
    ) as found:
        tensors.check_tensors(named, TINY, "a")
    assert "\n" not in str(found.value)


def test_stacked_layers_are_taken_apart():
    stacked = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    named = tensors.as_tensors({"decoder": {"layers": {"wo": {"kernel": stacked}}}})
    np.testing.assert_array_equal(named["decoder/layers_1/wo/kernel"].read(), stacked[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(bad):
    array = np.array([1.0, bad, bad], np.float32)
    with pytest.raises(ValueError, match="x has 2 of 3 values that are not finite"):
        tensors.read_finite(Tensor((3,), np.dtype(np.float32), "x", lambda: array))
    short = Tensor((4,), np.dtype(np.float32), "x", lambda: array[:1])
    with pytest.raises(ValueError, match=r"x is \[1\], announced \[4\]"):
        tensors.read_finite(short)


@pytest.mark.filterwarnings("error")
def test_only_values_that_are_not_finite_are_refused_as_such():
    for values, bad in (([np.inf, -np.inf, 1.0], 2), ([np.nan, 0.0, 1.0], 1)):
        with pytest.raises(ValueError, match=f"w has {bad} of 3 values that are not finite"):
            tensors.read_finite(
                Tensor((3,), np.dtype(np.float64), "w", lambda v=values: np.array(v))
            )
    large = np.array([1.7e308, 1.7e308])  # whose sum is infinite
    assert tensors.read_finite(Tensor((2,), large.dtype, "w", lambda: large)) is large
