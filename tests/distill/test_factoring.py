"""The parameters that Adafactor factors, by the rules of T5X."""

import numpy as np
import pytest
from flax import traverse_util

from gkd.distill import optimizers
from tests.distill.adafactor_references import adafactor_in_float64, steps, t5x_parameter


def layer_of(shape_of_bias, **kernels):
    """A layer's tree with a relative bias and attention kernels."""
    attention = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    bias = {"relpos_bias": {"rel_embedding": np.ones(shape_of_bias, np.float32)}}
    return {**bias, "self_attention": attention}


@pytest.mark.parametrize("form", ["a layer", "stacked", "three axes"])
def test_adafactor_factors_the_attention_of_scalable_t5_whatever_its_size(shared, form):
    """T5X took this step on kernels [embed 32, heads 4, kv 8], which its rules factor always."""
    folder = shared / "golden" / "t5x" / "t5v11_tiny_scanned"
    path = "decoder/decoder/self_attention/query/kernel"
    gradient = np.load(folder / "golden.npz")[f"grad/{path}"]
    before, after, gradient = (
        np.moveaxis(x, 1, 0).reshape(2, 32, 32)
        for x in (t5x_parameter(folder, 0, path), t5x_parameter(folder, 1, path), gradient)
    )
    if form == "stacked":
        trees = [{"layers": layer_of((2, 4, 32), query=x)} for x in (before, gradient)]
        got = steps(optimizers.adafactor(1e-2), trees[0], [trees[1]])["layers"]
        np.testing.assert_allclose(got["self_attention"]["query"]["kernel"], after, atol=2e-8)
        return
    shape = (32, 4, 8) if form == "three axes" else (32, 32)
    trees = [{"layers_1": layer_of((4, 32), query=x[1].reshape(shape))} for x in (before, gradient)]
    if form == "three axes":
        for tree in trees:
            del tree["layers_1"]["relpos_bias"]
    got = steps(optimizers.adafactor(1e-2), trees[0], [trees[1]])["layers_1"]
    kernel = got["self_attention"]["query"]["kernel"]
    assert kernel.shape == shape
    np.testing.assert_allclose(kernel.reshape(32, 32), after[1], atol=2e-8)


def test_every_parameter_is_factored_as_t5xs_rules_have_it():
    """Three steps in float64: attention kernels as a matrix, all else by the size of two axes."""
    random = np.random.default_rng(0)
    # name -> (shape, the matrix that T5X factors, None for none): embed 24, heads 3, kv 5.
    parameters = {
        "encoder/layers_0/attention/query/kernel": ((24, 15), (24, 15)),
        "encoder/layers_0/attention/out/kernel": ((15, 24), (15, 24)),
        "encoder/layers_0/relpos_bias/rel_embedding": ((3, 32), None),
        "encoder/layers_0/mlp/wi/kernel": ((24, 40), None),
        "encoder/layers_0/mlp/wo/kernel": ((128, 130), (128, 130)),
        "decoder/layers_0/self_attention/key/kernel": ((24, 15), None),  # no bias of its own
        "decoder/layers_0/encoder_decoder_attention/value/kernel": ((24, 3, 5), (24, 15)),
        "decoder/layers_0/encoder_decoder_attention/out/kernel": ((3, 5, 24), (15, 24)),
        "decoder/relpos_bias/rel_embedding": ((3, 32), None),
        "decoder/decoder_norm/scale": ((24,), None),
    }
    draws = [
        {name: np.float32(random.normal(size=shape)) for name, (shape, _) in parameters.items()}
        for _ in range(4)
    ]
    trees = [traverse_util.unflatten_dict(draw, sep="/") for draw in draws]
    got = steps(optimizers.adafactor(0.02), trees[0], trees[1:])
    got = traverse_util.flatten_dict(got, sep="/")
    for name, (shape, matrix) in parameters.items():
        start, *gradients = (draw[name].reshape(matrix or shape) for draw in draws)
        wanted = adafactor_in_float64(start, gradients, [0.02] * 3, matrix is not None)
        assert got[name].shape == shape
        np.testing.assert_allclose(got[name], wanted.reshape(shape), atol=1e-6, err_msg=name)
