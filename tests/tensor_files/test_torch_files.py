"""Files that PyTorch itself wrote, against the tensors that it wrote."""

import sys
import types

import numpy as np
import pytest

from gkd.errors import UserError
from gkd.tensor_files.torch_files import open_torch

NEEDS_TORCH = "needs PyTorch 2.6 or later (pip install torch): it writes and reads the files"


@pytest.fixture
def torch():
    """PyTorch; tests that need it skip where it is not installed."""
    return pytest.importorskip("torch", minversion="2.6", reason=NEEDS_TORCH)


def refused(path, match, error=ValueError):
    with pytest.raises(error, match=match) as caught:
        for tensor in open_torch(path).values():
            tensor.read()
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_stride_type_and_shared_storage(torch, zipped, tmp_path):
    table, square = torch.randn(5, 4), torch.randn(4, 4)
    state = {
        "whole": table,
        "tied": table,
        "other": table + 1,
        "square": square,
        "transposed": square.t(),
        "slice": torch.arange(40.0).view(5, 8)[1:4, 2::3],
        "repeated": torch.arange(3.0).expand(4, 3),
        "bfloat16": table.to(torch.bfloat16).t(),
        "float16": table.half(),
        "float64": table.double(),
        "parameter": torch.nn.Parameter(table),
        "scalar": torch.tensor(2.5),
    }
    torch.save(state, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    tensors = open_torch(tmp_path / "a.bin")
    assert list(tensors) == list(state)
    for name, wanted in state.items():
        array = tensors[name].read()
        assert array.flags.c_contiguous and array.flags.writeable
        assert f"torch.{array.dtype}" == str(wanted.dtype)
        assert array.shape == tensors[name].shape
        np.testing.assert_array_equal(
            array.astype(np.float64), wanted.detach().double().numpy(), err_msg=name
        )
    assert tensors["whole"].read is tensors["tied"].read
    assert tensors["square"].read is not tensors["transposed"].read


def test_files_that_are_no_table_of_weights(torch, tmp_path):
    file = tmp_path / "a.bin"
    for value, message in [
        ([torch.ones(2)], "holds a list, not a table of tensors"),
        ({"state_dict": {"a": torch.ones(2)}}, "state_dict is a dict, not a tensor"),
        ({"a": torch.arange(2)}, r"a is torch.int64 .*: weights are dense float64"),
        ({"a": torch.eye(2).to_sparse()}, "a is torch.float32 .torch.sparse_coo"),
        ({"a": torch.ones(2, device="meta")}, "a is torch.float32 .*meta"),
        ({"a": types.SimpleNamespace()}, "a pickle that is damaged or holds more than tensors"),
        ({3: torch.ones(2)}, "a tensor's name is 3"),
    ]:
        torch.save(value, file)
        refused(file, message)


def test_damaged_files(torch, tmp_path):
    file = tmp_path / "a.bin"
    torch.save({"a": torch.arange(64.0)}, file)
    content = file.read_bytes()
    place = content.index(np.arange(64, dtype=np.float32).tobytes())
    flipped = bytearray(content)
    flipped[place + 7] ^= 1
    for damaged, message in [
        (b"", "is no file of PyTorch: it begins with b''"),
        (b"<!DOCTYPE html>", "is no file of PyTorch: it begins with b'<!DO'"),
        (content[: len(content) // 2], "is truncated or damaged"),
        (content[:-1], "is truncated or damaged"),
        (bytes(flipped), "is damaged: .*does not have its checksum"),
        (b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00aR.", "pickle that is damaged or holds more"),
    ]:
        file.write_bytes(damaged)
        refused(file, message)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(64.0)}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    assert open_torch(file)["a"].read()[5] == 5


def test_without_pytorch_or_with_an_unsafe_one_nothing_is_opened(monkeypatch, tmp_path):
    file = tmp_path / "a.bin"
    refused(file, "does not exist: the checkpoint is not complete", FileNotFoundError)
    file.write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(file, "a file of PyTorch, which is not installed", ImportError)
    old = types.SimpleNamespace(__version__="2.5.1+cpu")
    monkeypatch.setitem(sys.modules, "torch", old)
    refused(file, r"PyTorch 2.5.1\+cpu can be made to run code .*: install PyTorch 2.6 or later")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    refused(file, "Git LFS pointer")
