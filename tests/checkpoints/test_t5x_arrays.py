"""T5X's layouts on disk, as Orbax itself and Flax's msgpack write them."""

import dataclasses
import json
import re
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from gkd.checkpoints import formats, t5x_arrays, t5x_format
from gkd.checkpoints.tensors import nest, tensor_names
from gkd.errors import UserError
from tests.checkpoints.t5x_checkpoints import TINY, random_params, refused, write_inline

CONFIG = dataclasses.replace(TINY, emb_dim=32, mlp_dim=64)  # arrays above 1 kB
LAYOUTS = {
    "ocdbt": {},
    "zarr": {"use_ocdbt": False},
    "zarr 3": {"use_zarr3": True},
    "zarr 3 in folders": {"use_ocdbt": False, "use_zarr3": True},
}


def write(folder, target, layout="ocdbt", **others):
    """A checkpoint as T5X's manager writes it, with the state of Adafactor."""
    slots = {"token_embedder": {"embedding": {"m": None, "v": None, "v_row": np.zeros(24)}}}
    tree = {"target": target, "state": {"step": np.int32(5), "param_states": slots}, **others}
    handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(**LAYOUTS[layout]))
    with ocp.Checkpointer(handler) as writer:
        writer.save(folder, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
    return folder


def assert_equal_trees(got, want):
    got, want = tensor_names(got), tensor_names(want)
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder of a checkpoint of Orbax, its parameters)."""
    params = random_params(CONFIG)
    return write(tmp_path_factory.mktemp("saved") / "checkpoint_5", params), params


@pytest.fixture
def copy(saved, tmp_path):
    """A whole checkpoint to be damaged."""
    return shutil.copytree(saved[0], tmp_path / "checkpoint_5")


def test_a_checkpoint_of_t5x_is_what_orbax_restores(shared):
    """T5X's own layout (Orbax's OCDBT), by the path of the model, the step or the item."""
    folder = shared / "cases" / "t5x_orbax" / "ocdbt"
    item = folder / "checkpoint_1000" / "state"
    with ocp.PyTreeCheckpointer() as reader:
        want = reader.restore(item)["target"]
    for path in (folder, item.parent, item):
        opened = formats.open_checkpoint(path)
        assert (opened.format, opened.path.name) == ("t5x", "checkpoint_1000")
        sizes = opened.config.num_heads, opened.config.head_dim, opened.config.vocab_size
        assert sizes == (4, 16, 384)
        assert_equal_trees(t5x_format.load_t5x(path), want)


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("name", ["t5v11_tiny_unscanned", "t5v11_tiny_scanned"])
def test_every_layout_of_orbax_holds_what_the_msgpack_holds(layout, name, shared, tmp_path):
    """T5X's golden checkpoints, whose parameters Orbax writes again in T5X's own shapes."""
    source = shared / "golden" / "t5x" / name / "checkpoint_1"
    _, arrays = t5x_arrays.open_arrays(t5x_arrays.find_t5x(source))
    write(tmp_path / "checkpoint_5", nest({n: a.read(None) for n, a in arrays.items()}), layout)
    assert_equal_trees(t5x_format.load_t5x(tmp_path), t5x_format.load_t5x(source))


def test_the_index_of_early_orbax(saved, tmp_path):
    """A msgpack index whose leaves are small arrays or the names of zarr folders."""
    params = saved[1]
    item = write(tmp_path / "checkpoint_5", params, "zarr") / "state"
    (item / "_METADATA").unlink()
    named = tensor_names(params)
    index = {n: ocp.utils.leaf_placeholder(f"target.{n.replace('/', '.')}") for n in named}
    index["encoder/encoder_norm/scale"] = named["encoder/encoder_norm/scale"]
    tree = {"target": nest(index), "state": {"step": np.int32(5)}}
    (item / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
    assert_equal_trees(t5x_format.load_t5x(tmp_path), params)


def test_what_is_written_is_what_t5x_restores(saved, tmp_path):
    """Restored by Orbax's manager with the options that T5X gives it."""
    params = saved[1]
    t5x_format.save_t5x(tmp_path / "checkpoint_7", CONFIG, params, step=7, layout="orbax")
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    with ocp.CheckpointManager(tmp_path, options=options, item_handlers=handlers) as manager:
        assert manager.all_steps() == [7]
        arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore())
        restored = manager.restore(7, args=arguments)["state"]
    assert int(restored["state"]["step"]) == 7
    assert_equal_trees(restored["target"], params)
    opened = t5x_format.open_t5x(tmp_path)
    assert opened.config == CONFIG
    assert_equal_trees(t5x_format.load_t5x(tmp_path), params)
    assert "network.T5Config.emb_dim = 32" in (tmp_path / "checkpoint_7/config.gin").read_text()


def test_the_state_of_the_optimizer_is_not_read(saved, tmp_path):
    item = write(tmp_path / "checkpoint_5", saved[1], "zarr") / "state"
    shutil.rmtree(item / "state.param_states.token_embedder.embedding.v_row")
    assert_equal_trees(t5x_format.load_t5x(tmp_path), saved[1])


def data_files(folder):
    return [path for path in (folder / "state").rglob("*") if path.parent.name == "d"]


def load(folder):
    return t5x_format.load_t5x(folder)


def test_truncated_and_missing_files(copy, saved):
    for path in [copy / "state/manifest.ocdbt", copy / "state/_METADATA"]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with refused("damaged|missing|truncated"):
            load(copy)
        path.unlink()
        with refused("damaged|missing|not complete"):
            load(copy)
        path.write_bytes(whole)
    found = 0
    for path in data_files(copy):  # some are versions of the index that no other file refers to
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            try:
                assert_equal_trees(load(copy), saved[1])
            except ValueError as error:
                assert isinstance(error, UserError) and "\n" not in str(error)
                assert re.search("damaged|missing|not complete", str(error))
                found += 1
        path.write_bytes(whole)
    assert found >= 4  # of the index, and of the files with the values
    assert_equal_trees(load(copy), saved[1])


def test_flipped_bytes_of_the_index_are_found(copy):
    for path in [copy / "state/manifest.ocdbt", copy / "state/_METADATA"]:
        whole = path.read_bytes()
        for place in range(0, len(whole), len(whole) // 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
            with refused("damaged|missing|UTF-8|JSON|other program|left over|no T5X|not complete"):
                load(copy)
        path.write_bytes(whole)


def test_descriptions_that_describe_no_t5x(copy, tmp_path):
    path = copy / "state/_METADATA"
    whole = json.loads(path.read_text())
    for tree, message in [
        ({}, "holds no `target`, but nothing: it is an Orbax checkpoint of another program"),
        ({"a": 3}, "is damaged: 3 describes no array"),
        ({"a": {"key_metadata": []}}, "key_metadata"),
        ({"a": {"key_metadata": [3]}}, "3 is no key"),
        ({"a": {"key_metadata": [{"key": "target"}, {"key": "../x"}]}}, "has the name .*: refused"),
        ({"a": {"key_metadata": [{"key": "target"}, {"key": "no"}]}}, "target.no is missing or"),
    ]:
        path.write_text(json.dumps(whole | {"tree_metadata": tree}))
        with refused(message):
            load(copy)
    other = {"params": random_params(TINY)}
    handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler())
    with ocp.Checkpointer(handler) as writer:
        arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(other))
        writer.save(tmp_path / "1000", args=arguments)
    with refused("holds no `target`, but params: it is an Orbax checkpoint of another program"):
        formats.open_checkpoint(tmp_path / "1000")


def test_arrays_that_are_no_weights(tmp_path):
    target = {"a": {"kernel": np.arange(6).reshape(2, 3)}}
    with refused("target.a.kernel is of type int64: weights are floating-point"):
        load(write(tmp_path / "checkpoint_5", target))
    with refused("target.a.kernel is of type '<i8': weights are floating-point"):
        load(write(tmp_path / "zarr" / "checkpoint_5", target, "zarr"))


def test_links_out_of_the_folder_are_refused(copy, tmp_path):
    path = data_files(copy)[0]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with refused("outside of the folder: refused"):
        load(copy)


def test_a_run_of_this_program_is_no_t5x(tmp_path):
    for name in ("state", "description"):
        (tmp_path / "3" / name).mkdir(parents=True)
    (tmp_path / "3/state/_METADATA").write_text("{}")
    assert not t5x_arrays.is_t5x(tmp_path / "3") and not t5x_arrays.is_t5x(tmp_path / "3/state")


def test_the_newest_complete_checkpoint_is_meant(tmp_path):
    params = random_params(TINY)
    for step in (9, 10):
        write_inline(tmp_path / f"checkpoint_{step}", params)
    write_inline(tmp_path / "checkpoint_12.tmp-1700000000", params)
    unfinished = write(tmp_path / "checkpoint_13.orbax-checkpoint-tmp-17", params)
    (tmp_path / "checkpoint_11").mkdir()  # its index was never written
    assert t5x_arrays.is_t5x(tmp_path) and t5x_arrays.is_t5x(tmp_path / "checkpoint_9")
    assert t5x_arrays.find_t5x(tmp_path).name == "checkpoint_10"
    assert not t5x_arrays.is_t5x(unfinished)
    assert t5x_arrays.find_t5x(tmp_path / "checkpoint_9").name == "checkpoint_9"
    assert not t5x_arrays.is_t5x(tmp_path / "checkpoint_11")
    (tmp_path / "checkpoint_11/checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"\n')
    assert not t5x_arrays.is_t5x(tmp_path / "checkpoint_11")  # TensorFlow's
    with pytest.raises(ValueError, match="no T5X checkpoint"):
        t5x_arrays.find_t5x(tmp_path / "checkpoint_11")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        t5x_arrays.find_t5x(tmp_path / "nothing")
