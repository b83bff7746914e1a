"""safetensors files against the safetensors library, and files that are not what they claim."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gkd.tensor_files.safetensors_files import open_safetensors, split_by_size, write_safetensors
from gkd.tensor_files.tensor import Tensor

VALUES = {
    "wide": np.arange(12, dtype=np.float64).reshape(3, 4),
    "a": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "half": np.arange(5, dtype=np.float16),
    "brain": np.arange(8, dtype=np.float32).reshape(2, 2, 2).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
}


def test_reads_what_the_library_wrote(tmp_path):
    save_file(VALUES, tmp_path / "x.safetensors", metadata={"format": "pt"})
    tensors = open_safetensors(tmp_path / "x.safetensors")
    assert sorted(tensors) == sorted(VALUES)
    for name, value in VALUES.items():
        read = tensors[name].read()
        assert (read.dtype, read.shape, read.tobytes()) == (
            value.dtype,
            value.shape,
            value.tobytes(),
        )


def test_the_library_reads_what_it_writes(tmp_path):
    values = {**VALUES, "turned": np.arange(35, dtype=np.float32).reshape(5, 7).T}
    tensors = {
        name: Tensor(value.shape, value.dtype, name, lambda value=value: value)
        for name, value in values.items()
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert sorted(read) == sorted(values)
    for name, value in values.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == value.dtype


def test_split_by_size():
    def tensor(bytes_):
        return Tensor((bytes_ // 4,), np.dtype(np.float32), "", lambda: None)

    parts = split_by_size(
        {n: tensor(s) for n, s in zip("abcd", (40, 40, 400, 20), strict=True)}, 80
    )
    assert [sorted(part) for part in parts] == [["a", "b"], ["c"], ["d"]]


def _file(tmp_path, header, data=b"\0" * 24, length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path = tmp_path / "x.safetensors"
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def _entry(shape=(2, 3), dtype="F32", offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": _entry(shape=(1 << 40, 1 << 20))}, r"a of shape .* and type F32 cannot be 24 bytes"),
        ({"a": _entry((1 << 20,), offsets=(0, 1 << 22))}, "truncated or damaged: a would end at"),
        ({"a": _entry(offsets=(24, 48))}, "truncated or damaged: a would end at"),
        ({"a": _entry(offsets=(-24, 0))}, "a has shape"),
        ({"a": _entry((-2, -3))}, "a has shape"),
        ({"a": _entry((2.0, 3))}, "a has shape"),
        ({"a": _entry((6,), "I32")}, "a is 'I32'; weights are one of F64, F32, F16, BF16"),
        ({"a": {"dtype": "F32"}}, "damaged entry for a"),
        ({"a": [1]}, "damaged entry for a"),
        ({"a": _entry((3,), offsets=(0, 12)), "b": _entry((3,), offsets=(8, 20))}, "share bytes"),
        ({"a": _entry((3,), offsets=(0, 12))}, "12 bytes between a and the end of the file"),
        ({"a": _entry((3,), offsets=(12, 24))}, "12 bytes between the header and a belong to no"),
        (
            {"a": _entry((2,), offsets=(0, 8)), "b": _entry((2,), offsets=(16, 24))},
            "8 bytes between a and b belong to no tensor",
        ),
        ({"a": _entry(), "b": _entry((2, 0), offsets=(12, 12))}, "a and b share bytes"),
        ({}, "24 bytes between the header and the end of the file"),
        ({"a": _entry(dtype=[])}, r"entry for a: dtype is \[\]: a string"),
        ({"a": {**_entry(), "shape": {}}}, "entry for a: shape is {}: a list"),
        ({"a": {**_entry(), "data_offsets": [0, 1, 24]}}, "a length of 2 or less"),
        (b'{"a": 1, "a": 2}', "damaged header: .*'a' twice"),
        (json.dumps({"a": _entry()})[:-1].encode() + b', "a": {}}', "'a' twice"),
        (b'{"a":' + b"[" * 100_000, "damaged header: .*levels deep"),
        (b'{"a":' * 100_000, "damaged header: .*levels deep"),
        (
            {"a": _entry(), "__metadata__": {"step": 1}},
            "damaged header: __metadata__ is {'step': 1}",
        ),
        ({"a": _entry(), "__metadata__": ["pt"]}, "damaged header: __metadata__ is"),
        ({"\ud800": _entry()}, r"damaged header: a tensor's name is '\\ud800'"),
        (b"[1, 2]", "damaged header: not a table"),
        (b'{"a": ', "damaged header"),
        (b"\xff\xfe\xfd", "damaged header"),
    ],
)
def test_headers_that_lie(tmp_path, header, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_safetensors(_file(tmp_path, header))
    assert "x.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [1 << 62, 10_000])
def test_absurd_header_length(tmp_path, length):
    with pytest.raises(ValueError, match=f"no safetensors file or is truncated.*{length}"):
        open_safetensors(_file(tmp_path, {"a": _entry()}, length=length))


@pytest.mark.parametrize("size", [0, 5, 8, 60, 80])
def test_truncated(tmp_path, size):
    path = _file(tmp_path, {"a": _entry()})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="truncated|damaged"):
        open_safetensors(path)


def test_cut_after_it_was_opened(tmp_path):
    path = _file(tmp_path, {"a": _entry()})
    tensor = open_safetensors(path)["a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="ended while it was read"):
        tensor.read()


def test_spans_in_any_order_and_empty_tensors_cover_the_file(tmp_path):
    """As the official library accepts them."""
    header = {
        "b": _entry((3,), offsets=(12, 24)),
        "empty": _entry((0, 4), offsets=(12, 12)),
        "a": _entry((3,), offsets=(0, 12)),
        "last": _entry((0,), offsets=(24, 24)),
        "__metadata__": {"format": "pt"},
    }
    path = _file(tmp_path, header, np.arange(6, dtype=np.float32).tobytes())
    tensors = open_safetensors(path)
    theirs = load_file(path)
    assert set(tensors) == set(theirs)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), theirs[name])


@pytest.mark.parametrize("name", ["st_shift_4", "st_hole", "st_trailing_garbage", "st_deep_header"])
def test_files_that_the_official_library_refuses(shared, name):
    path = shared / "cases" / "safetensors" / name / "model.safetensors"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with pytest.raises(ValueError, match="is damaged: .* belong to no|damaged header") as caught:
        open_safetensors(path)
    assert "\n" not in str(caught.value)
