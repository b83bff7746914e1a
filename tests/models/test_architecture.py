"""Architectures: what a configuration may give, descriptions, and another family than T5."""

import dataclasses
import json

import jax
import pytest

from gkd.checkpoints.architectures import from_description
from gkd.models import t5, t5x_adapter
from gkd.models.architecture import Architecture, check_architecture
from gkd.models.flops import MatrixSizes, cross_flops, decoder_flops, encoder_flops
from gkd.models.t5 import T5Config

TINY = T5Config(
    vocab_size=24, emb_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=1,
    num_decoder_layers=2,
)  # fmt: skip


@pytest.mark.parametrize(
    "value, kind",
    [("t5_small", "str"), (T5Config, "the class T5Config"), ({"vocab_size": 24}, "dict")],
)
def test_other_things_than_architectures_are_refused_by_their_type(value, kind):
    with pytest.raises(ValueError, match=f"^STUDENT_MODEL is {kind}, which is not an") as found:
        check_architecture(value, "STUDENT_MODEL")
    assert "\n" not in str(found.value)


def test_t5_is_an_architecture():
    assert check_architecture(TINY, "STUDENT_MODEL") is TINY


def test_a_description_is_json_that_makes_the_same_architecture():
    stacked = dataclasses.replace(TINY, stacked_layers=True, remat=True)
    saved = json.loads(json.dumps(stacked.describe()))
    assert from_description(saved, "a") == TINY
    assert "architecture" not in saved, "runs of T5 are read by earlier versions too"


def test_execution_changes_how_a_model_runs_and_not_what_it_is():
    changed = TINY.with_execution(dtype="bfloat16", dropout_rate=0.1, remat=True)
    assert (changed.dtype, changed.dropout_rate, changed.remat) == ("bfloat16", 0.1, True)
    assert not changed.stacked_layers
    assert changed.parameter_shapes() == TINY.parameter_shapes()
    assert TINY.with_execution(dtype=None) == TINY


@pytest.fixture
def module_model():
    """A T5X architecture around a module that nothing calls."""
    return t5x_adapter.T5XModel(None, dataclasses.replace(TINY, dropout_rate=0.1))


def test_a_t5x_module_is_an_architecture_of_its_own(module_model):
    assert isinstance(module_model, Architecture) and not module_model.configurable
    assert module_model.sizes == TINY.sizes
    assert module_model.parameter_shapes() == TINY.parameter_shapes()
    assert module_model.with_execution() == module_model
    for name, value in (("dtype", "bfloat16"), ("remat", True), ("dropout_rate", 0.2)):
        with pytest.raises(ValueError, match=f"set its {name} in its own gin"):
            module_model.with_execution(**{name: value})


def test_dropout_of_a_t5x_module_can_be_switched_off(module_model):
    """The module stays: it is not replaced by this project's T5."""
    silent = module_model.with_execution(dropout_rate=0.0)
    assert isinstance(silent, t5x_adapter.T5XModel) and silent.dropout_rate == 0


def test_shapes_by_name_are_those_of_initialised_parameters():
    params = jax.eval_shape(t5.as_seq2seq(TINY).init, jax.random.PRNGKey(0))
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    count = sum(leaf.size for _, leaf in leaves)
    shapes = TINY.parameter_shapes()
    assert len(shapes) == len(leaves)
    assert sum(jax.numpy.zeros(shape).size for shape in shapes.values()) == count


def test_flops_of_a_decoder_only_model_with_shared_key_heads():
    """Qwen3-0.6B: 28 layers, 16 query and 8 key heads of 128, no cross-attention; by hand."""
    sizes = MatrixSizes(
        vocab_size=151936, emb_dim=1024, num_heads=16, query_width=2048, key_width=1024,
        mlp_dim=3072, mlp_kernels=3, encoder_layers=28, decoder_layers=28, cross_attention=False,
    )  # fmt: skip
    kernels = 2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072  # 15 728 640 weights of a layer
    assert encoder_flops(sizes, 1, 1) == 2 * 28 * (kernels + 2 * 2048)
    assert decoder_flops(sizes, 1, 1, attended=5) == 2 * 28 * (kernels + 2 * 5 * 2048)
    assert cross_flops(sizes, 1, 7) == 0
