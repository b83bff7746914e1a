"""Damaged chunks of zarr arrays."""

import gzip
import tracemalloc

import numpy as np
import pytest

from gkd.tensor_files import zarr_arrays
from tests.checkpoints.t5x_checkpoints import (
    array_of,
    refused,
)

COMPRESSORS = [{"id": "gzip", "level": 1}, {"id": "zlib", "level": 1}, {"id": "bz2", "level": 1}]
NO_CHECKSUM = [{"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}, {"id": "zstd"}, None]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda each: each["id"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_every_byte_of_a_compressed_chunk_counts(compressor, separator, tmp_path):
    """TensorStore alone reads a chunk without the last 9 bytes, or with a wrong checksum."""
    array, values = array_of(tmp_path, compressor, separator)
    np.testing.assert_array_equal(zarr_arrays.read_zarr(array), values)
    chunk = tmp_path / "target.x" / f"0{separator}1"
    whole = chunk.read_bytes()
    cuts = [whole[:-count] for count in (*range(1, 14), len(whole) // 2)]
    flips = []
    used = 0x80 if compressor["id"] == "bz2" else 1  # the other end of a last byte is padding
    for position in (*range(-12, 0), len(whole) // 2):
        damaged = bytearray(whole)
        damaged[position] ^= used
        flips += [bytes(damaged), bytes(damaged[: -4 if position < -4 else None])]
    for damaged in [*cuts, *flips, whole + b"\0", whole + whole, b""]:
        chunk.write_bytes(damaged)
        with refused("target.x.* is damaged or not complete"):
            zarr_arrays.read_zarr(array)
    chunk.write_bytes(whole)
    np.testing.assert_array_equal(zarr_arrays.read_zarr(array), values)


@pytest.mark.parametrize("compressor", NO_CHECKSUM, ids=lambda each: each and each["id"])
def test_the_length_of_a_chunk_without_checksum_counts(compressor, tmp_path):
    array, values = array_of(tmp_path, compressor)
    np.testing.assert_array_equal(zarr_arrays.read_zarr(array), values)
    chunk = tmp_path / "target.x" / "0.1"
    whole = chunk.read_bytes()
    for damaged in [*(whole[:-count] for count in range(1, 14)), whole + b"\0", b""]:
        chunk.write_bytes(damaged)
        with refused("target.x.* (is damaged or not complete|claims 2400 bytes, but)"):
            zarr_arrays.read_zarr(array)


def test_a_chunk_that_unpacks_to_more_is_refused_at_its_size(tmp_path):
    array, _ = array_of(tmp_path, {"id": "gzip", "level": 1})
    (tmp_path / "target.x" / "0.1").write_bytes(gzip.compress(bytes(1 << 26)))
    tracemalloc.start()
    with refused("it holds more than 1280 of 1280 bytes"):
        zarr_arrays.read_zarr(array)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
