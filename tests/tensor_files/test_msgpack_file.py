"""Damaged msgpack files."""

import pytest

from gkd.checkpoints import t5x_format
from tests.checkpoints.t5x_checkpoints import refused


@pytest.mark.parametrize(
    "damaged",
    [
        b"\x81\xa6target\xc9\xff\xff\xff\xff\x01",  # an array of 4 GB
        b"\x81\xa6target\xdf\xff\xff\xff\xff",  # 4 billion names
        b"\x81\xa6target\xc6\x7f\xff\xff\xff",  # 2 GB of bytes
        b"\x81\xa6target\xdd\xff\xff\xff\xff\xc0",  # 4 billion entries
    ],
)
def test_lengths_that_the_file_cannot_hold(damaged, tmp_path):
    (tmp_path / "checkpoint").write_bytes(damaged)
    with refused("is truncated or damaged: a .* claims"):
        t5x_format.open_t5x(tmp_path)


@pytest.mark.parametrize(
    "payload, message",
    [
        # (shape, dtype, bytes) as Flax has it; the bytes do not fill the shape.
        (b"\x93\x92\xce\x40\x00\x00\x00\x08\xa7float32\xc4\x04\0\0\0\0", "cannot be 4 bytes"),
        (b"\x93\x91\xff\xa7float32\xc4\x04\0\0\0\0", "is no array"),
        (b"\x93\x91\x01\xa6object\xc4\x04\0\0\0\0", "not floating-point weights"),
        (b"\x93\x91\x01\xa5int32\xc4\x04\0\0\0\0", "not floating-point weights"),
        (b"\xc0", "is no array"),
    ],
)
def test_arrays_that_are_none(payload, message, tmp_path):
    array = b"\xc7" + bytes([len(payload)]) + b"\x01" + payload
    (tmp_path / "checkpoint").write_bytes(b"\x81\xa6target\x81\xa1a" + array)
    with refused(message):
        t5x_format.open_t5x(tmp_path)
