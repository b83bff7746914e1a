"""Damaged descriptions of zarr arrays."""

import json

import pytest

from gkd.tensor_files import zarr_arrays
from tests.checkpoints.t5x_checkpoints import (
    array_of,
    refused,
)


@pytest.mark.parametrize(
    "change", [{"filters": [{"id": "x"}]}, {"deep": 1}, {"compressor": [1]}, {"dtype": {}}]
)
def test_a_description_of_an_array_is_read_within_bounds(change, tmp_path):
    array, _ = array_of(tmp_path, {"id": "gzip", "level": 1})
    path = tmp_path / "target.x" / ".zarray"
    text = json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(text.replace('"deep": 1', '"deep": ' + "[" * 100_000 + "]" * 100_000))
    with refused("cannot be opened"):
        zarr_arrays.read_zarr(array)
