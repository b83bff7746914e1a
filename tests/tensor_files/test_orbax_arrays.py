"""Arrays in OCDBT and in folders, as TensorStore itself writes them."""

import ml_dtypes
import numpy as np
import pytest
import tensorstore
from etils import epath

from gkd.tensor_files.orbax_arrays import open_folder
from tests.checkpoints.t5x_checkpoints import refused

DRIVERS = {"zarr": "file", "zarr3": "file", "zarr in ocdbt": "ocdbt", "zarr3 in ocdbt": "ocdbt"}


def create(root, kind, shape, dtype, chunk):
    """An empty array `target.a` of a kind."""
    driver = kind.split()[0]
    place = {"driver": "file", "path": f"{root}/target.a/"}
    if DRIVERS[kind] == "ocdbt":
        place = {"driver": "ocdbt", "base": f"file://{root}/", "path": "target.a/"}
    store = {"driver": driver, "kvstore": place, "create": True, "dtype": dtype}
    layout = tensorstore.ChunkLayout(chunk_shape=chunk)
    return tensorstore.open(store, shape=shape, chunk_layout=layout).result()


def opened(root, kind):
    return open_folder(epath.Path(root), kind.startswith("zarr3")).open("target.a")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(DRIVERS))
def test_an_array_and_a_layer_of_it(kind, dtype, tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(ml_dtypes.bfloat16)
    values = values.astype(tensorstore.dtype(dtype).numpy_dtype)
    create(tmp_path, kind, values.shape, dtype, (4, 2, 4)).write(values).result()
    array = opened(tmp_path, kind)
    assert (array.shape, array.dtype) == (values.shape, values.dtype)
    np.testing.assert_array_equal(array.read(None), values)
    np.testing.assert_array_equal(array.read(3), values[:, 3])
    assert array.read(3).flags.c_contiguous


@pytest.mark.parametrize("kind", list(DRIVERS))
def test_chunks_that_were_never_written_are_no_zeros(kind, tmp_path):
    values = np.ones((6, 5), np.float32)
    create(tmp_path, kind, values.shape, "float32", (3, 5))[:3].write(values[:3]).result()
    with refused("target.a is damaged or not complete"):
        opened(tmp_path, kind).read(None)


@pytest.mark.parametrize("kind", ["zarr in ocdbt", "zarr3 in ocdbt"])
def test_sizes_that_the_files_cannot_hold(kind, tmp_path):
    create(tmp_path, kind, (1 << 20, 1 << 20), "float32", (16, 16))
    with refused("claims 4398046511104 bytes, but .* bytes are in the folder"):
        opened(tmp_path, kind)
    create(tmp_path / "b", kind, (4, 4), "float32", (1 << 12, 1 << 12))
    with refused(r"has chunks of .4096, 4096., larger than .4, 4."):
        opened(tmp_path / "b", kind)


def test_names_that_leave_the_folder(tmp_path):
    for is_zarr3 in (False, True):
        folder = open_folder(epath.Path(tmp_path), is_zarr3)
        for name in ("../a", "a/../../b", "/etc", "a:b", ""):
            with refused("refused|leaves the folder"):
                folder.open(name)
