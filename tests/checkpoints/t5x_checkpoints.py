"""Small random T5X checkpoints for tests."""

import contextlib

import flax.linen as nn
import jax
import numpy as np
import pytest
import tensorstore
from etils import epath
from flax import serialization

from gkd.errors import UserError
from gkd.models import t5
from gkd.tensor_files import zarr_arrays

TINY = t5.T5Config(
    vocab_size=24, emb_dim=8, num_heads=3, head_dim=2, mlp_dim=10, num_encoder_layers=1,
    num_decoder_layers=2,
)  # fmt: skip


def random_params(config, dtype=np.float32, seed=0):
    """Parameters of an architecture, every value drawn."""
    shapes = nn.meta.unbox(jax.eval_shape(t5.as_seq2seq(config).init, jax.random.PRNGKey(0)))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(dtype), shapes)


def write_inline(folder, target, state=None, top=False):
    """A checkpoint as Flax writes it: every array inside the msgpack file."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {"target": target, "state": state or {"step": np.int32(3)}}
    tree = body if top else {"version": 3, "optimizer": body}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    return folder


WO = "target.encoder.layers_0.mlp.wo.kernel"


@contextlib.contextmanager
def refused(message, error=ValueError):
    """Asserts a one-line error that the command line prints without a traceback."""
    with pytest.raises(error, match=message) as caught:
        yield
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def edit_index(folder, edit):
    """Rewrites the index after `edit(the target's wo entry, the whole target)`."""
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    target = tree["optimizer"]["target"]
    edit(target["encoder"]["layers_0"]["mlp"]["wo"]["kernel"], target)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))


def array_of(folder, compressor, separator="."):
    """An array in two chunks as TensorStore writes it, its location and its values."""
    values = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    metadata = {"chunks": [20, 16], "shape": [20, 30], "compressor": compressor}
    spec = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
    place = {"driver": "file", "path": f"{folder}/target.x/"}
    store = {**metadata, "dimension_separator": separator}
    opened = {**spec, "metadata": store, "kvstore": place, "create": True, "delete_existing": True}
    tensorstore.open(opened).result().write(values).result()
    index = {**spec, "kvstore": {"driver": "file", "path": "target.x/"}}
    return zarr_arrays.locate_zarr(index, epath.Path(folder), "x"), values
