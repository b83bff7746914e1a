"""The format of a checkpoint is recognised by its files."""

import numpy as np
import orbax.checkpoint as ocp
import pytest

from gkd.checkpoints import formats, save_hf, save_t5x
from tests.checkpoints.t5x_checkpoints import TINY, random_params


@pytest.mark.parametrize(("save", "kind"), [(save_hf, "huggingface"), (save_t5x, "t5x")])
def test_each_format_is_recognised_and_opened(save, kind, tmp_path):
    params = random_params(TINY)
    save(tmp_path / "checkpoint_1", TINY, params)
    assert formats.recognise(tmp_path / "checkpoint_1") == kind
    opened = formats.open_checkpoint(tmp_path / "checkpoint_1", "newest")
    assert opened.format == kind
    name = "decoder/layers_1/mlp/wo/kernel"
    want = params["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]
    np.testing.assert_array_equal(opened.tensors[name].read(), want)
    with pytest.raises(ValueError, match=f"step 3: .* is a {kind} checkpoint, only a run has"):
        formats.open_checkpoint(tmp_path / "checkpoint_1", 3)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        formats.recognise(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file: give the folder"):
        formats.recognise(tmp_path / "file")
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="is not a checkpoint: .*it holds nothing; wanted model"):
        formats.recognise(tmp_path / "old")
    for name, message in [
        ("model.ckpt-1000.index", "model.ckpt-1000.index is the index of a TensorFlow checkpoint"),
        ("t5.gguf", "t5.gguf is llama.cpp's weights"),
        ("weights.pt", "weights.pt is a pickle of PyTorch"),
        ("pytorch_model.bin", "holds pytorch_model.bin without config.json"),
    ]:
        (tmp_path / "old" / name).write_bytes(b"")
        with pytest.raises(ValueError, match=message):
            formats.recognise(tmp_path / "old")
        (tmp_path / "old" / name).unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("default", "its item `default` is an Orbax checkpoint of another program than T5X"),
        ("7.orbax-checkpoint-tmp-1", "Orbax did not finish writing 7.orbax-checkpoint-tmp-1"),
    ],
)
def test_other_folders_of_orbax_are_named(tmp_path, name, message):
    item = tmp_path / "run" / name
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(item, {"params": {"w": np.ones(3, np.float32)}})
    with pytest.raises(ValueError, match=f"run is not a checkpoint that is read: {message}"):
        formats.recognise(tmp_path / "run")
    if name != "default":
        with pytest.raises(ValueError, match=message):
            formats.recognise(item)
