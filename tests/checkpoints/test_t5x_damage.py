"""Damaged, hostile and half-written T5X checkpoints: one clear line each, and nothing left over."""

import contextlib
import dataclasses
import json
import os
import pickle
import resource
import shutil
import signal

import jax
import numpy as np
import pytest
from etils import epath
from flax import serialization

from gkd.checkpoints import t5x_arrays, t5x_format
from gkd.errors import UserError
from gkd.tensor_files.msgpack_file import index_msgpack
from tests.checkpoints.t5x_checkpoints import (
    TINY,
    WO,
    edit_index,
    random_params,
    refused,
    write_inline,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoint_1"
    t5x_format.save_t5x(folder, TINY, random_params(TINY))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A whole checkpoint to be damaged."""
    return shutil.copytree(saved, tmp_path / "checkpoint_1")


def test_a_cut_index_is_refused_wherever_it_is_cut(copy, tmp_path):
    inline = write_inline(tmp_path / "inline", random_params(TINY)) / "checkpoint"
    for file in (inline, copy / "checkpoint"):
        whole = file.read_bytes()
        for length in [*range(0, len(whole), 1 + len(whole) // 15), len(whole) - 1]:
            file.write_bytes(whole[:length])
            with refused("truncated|empty"):
                index_msgpack(file, lambda keys: True)
        file.write_bytes(whole + b"\xc0")
        with refused("1 bytes follow its end"):
            index_msgpack(file, lambda keys: True)


def test_flipped_bytes_of_an_index_never_do_worse_than_one_line(tmp_path):
    random = np.random.default_rng(0)
    folder = write_inline(epath.Path(tmp_path), {"a": {"b": np.ones((2, 3), np.float32)}})
    file = folder / "checkpoint"
    whole = file.read_bytes()
    failures = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        file.write_bytes(damaged)
        try:
            t5x_arrays.open_arrays(folder)
        except ValueError as error:
            assert isinstance(error, UserError) and "\n" not in str(error), error
            failures += 1
    assert 75 < failures < 300


def test_what_is_no_checkpoint(tmp_path):
    file = tmp_path / "checkpoint"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps({"optimizer": {}}, protocol))
        with refused("looks like a pickle file"):
            t5x_format.open_t5x(tmp_path)
    file.write_bytes(pickle.dumps({"optimizer": {}}, 0))
    with refused("no msgpack checkpoint"):
        t5x_format.open_t5x(tmp_path)
    file.write_bytes(serialization.msgpack_serialize({"version": 3, "optimizer": {"state": {}}}))
    with refused("holds no parameters"):
        t5x_format.open_t5x(tmp_path)
    # Extensions other than Flax's arrays: a complex number, an unknown one.
    for code in (2, 77):
        file.write_bytes(b"\x81\xa6target\x81\xa1a\xd4" + bytes([code, 0]))
        with refused(f"a is of msgpack extension {code}"):
            t5x_format.open_t5x(tmp_path)
    nested = b"\x81\xa6target" + b"\x81\xa1a" * 5000 + b"\xc0"
    file.write_bytes(nested)
    with refused("nested more than"):
        t5x_format.open_t5x(tmp_path)
    # The same depth in what is jumped over costs nothing.
    file.write_bytes(nested.replace(b"target", b"states"))
    with refused("holds no parameters"):
        t5x_format.open_t5x(tmp_path)


def damage_chunk(folder):
    chunk = folder / WO / "0.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0xFF
    chunk.write_bytes(data)


def cut_chunk(folder):
    chunk = folder / WO / "0.0"
    chunk.write_bytes(chunk.read_bytes()[:-20])


def edit_array(folder, **changes):
    path = folder / WO / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


ARRAYS = {
    "a damaged chunk": (damage_chunk, "damaged or not complete"),
    "a cut chunk": (cut_chunk, "damaged or not complete"),
    "a missing chunk": (
        lambda folder: (folder / WO / "0.0").rename(folder / WO / "9.9"),
        "damaged or not complete",
    ),
    "no .zarray": (lambda folder: (folder / WO / ".zarray").unlink(), "zarray is missing"),
    "no folder": (lambda folder: shutil.rmtree(folder / WO), "zarray is missing"),
    "a damaged .zarray": (
        lambda folder: (folder / WO / ".zarray").write_text("{"),
        "cannot be opened",
    ),
    "another shape": (
        lambda folder: edit_array(folder, shape=[10, 9], chunks=[10, 9]),
        r"is float32\[10, 9\], but the index has float32\[10, 8\]",
    ),
    "another type": (
        lambda folder: edit_array(folder, dtype="<f8"),
        r"is float64\[10, 8\], but the index has",
    ),
    "absurd chunks": (lambda folder: edit_array(folder, chunks=[10, 1 << 40]), "has chunks of"),
}


@pytest.mark.parametrize("kind", list(ARRAYS))
def test_damaged_arrays(kind, copy):
    damage, message = ARRAYS[kind]
    damage(copy)
    with refused(message):
        t5x_format.load_t5x(copy, TINY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"driver": "n5"},
        {"driver": []},
        {"kvstore": 1},
        {"kvstore": {"driver": {}}},
        {"metadata": None},
        {"dtype": ["float32"]},
        {"dtype": "int32"},
    ],
)
def test_an_entry_of_the_index_of_another_type(wrong, copy):
    edit_index(copy, lambda entry, target: entry.update(wrong))
    with refused("encoder/layers_0/mlp/wo/kernel"):
        t5x_format.open_t5x(copy, TINY)


@pytest.mark.parametrize(
    "rows, message",
    [(1 << 23, "claims 268435456 bytes, but [0-9]+ bytes are there"), (1 << 40, "not a T5's")],
)
def test_an_array_that_claims_more_than_is_there(rows, message, copy):
    def claim(entry, target):
        target["token_embedder"]["embedding"]["metadata"]["shape"] = [rows, 8]
        del target["decoder"]["logits_dense"]

    edit_index(copy, claim)
    path = copy / "target.token_embedder.embedding/.zarray"
    huge = {"shape": [rows, 8], "chunks": [rows, 8]}
    path.write_text(json.dumps({**json.loads(path.read_text()), **huge}))
    with refused(message):
        t5x_format.load_t5x(copy)


def test_an_absurd_number_of_layers_is_not_counted_out(copy):
    def deeper(entry, target):
        target["encoder"]["layers_4000000000"] = target["encoder"]["layers_0"]

    edit_index(copy, deeper)
    with refused("layers up to 4000000000, but 2 here"):
        t5x_format.open_t5x(copy)


def test_names_and_shapes_are_listed(copy):
    def change(entry, target):
        entry["metadata"]["shape"] = [7, 8]
        target["decoder"]["extra"] = target["decoder"].pop("decoder_norm")

    edit_index(copy, change)
    with refused(
        "missing: decoder/decoder_norm/scale; left over: .*checkpoint: decoder/extra/scale; "
        r"wrong shape: encoder/layers_0/mlp/wo/kernel is \[7, 8\], wanted \[10, 8\]"
    ):
        t5x_format.open_t5x(copy, TINY)


@pytest.mark.parametrize(
    "path", ["/etc", "../checkpoint_1/" + WO, f"a/../../{WO}", "..", "", ".", "file:///etc", "a\0b"]
)
def test_paths_that_leave_the_folder(path, copy):
    edit_index(copy, lambda entry, target: entry["kvstore"].update(path=path))
    with refused("leaves the folder: refused"):
        t5x_format.open_t5x(copy, TINY)


@pytest.mark.parametrize("linked", [WO, f"{WO}/0.0", f"{WO}/.zarray"])
def test_links_that_lead_out_of_the_folder(linked, copy, tmp_path):
    (copy / linked).rename(tmp_path / "elsewhere")
    (copy / linked).symlink_to(tmp_path / "elsewhere")
    read = t5x_format.open_t5x if linked == WO else t5x_format.load_t5x
    with refused("outside of the folder: refused"):
        read(copy, TINY)


def test_values_that_are_not_finite(tmp_path):
    params = random_params(TINY)
    params["encoder"]["encoder_norm"]["scale"][2] = np.nan
    write_inline(tmp_path / "in", params)
    with refused("checkpoint: encoder/encoder_norm/scale has 1 of 8 values that are not finite"):
        t5x_format.load_t5x(tmp_path / "in")
    with refused("encoder/encoder_norm/scale has 1 of 8 values that are not finite"):
        t5x_format.save_t5x(tmp_path / "out", TINY, params)
    assert os.listdir(tmp_path) == ["in"]


@contextlib.contextmanager
def files_up_to(size):
    """The system lets no file grow further: like a full disk, in the midst of writing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(tmp_path):
    config = dataclasses.replace(TINY, vocab_size=20000)  # a table of 640 kB
    params = random_params(config)
    with files_up_to(200_000), refused("could not be written and was removed", OSError):
        t5x_format.save_t5x(tmp_path / "out", config, params)
    assert os.listdir(tmp_path) == []


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with refused("exists already", FileExistsError):
        t5x_format.save_t5x(tmp_path / "out", TINY, random_params(TINY))
    assert os.listdir(tmp_path / "out") == ["notes.txt"] and os.listdir(tmp_path) == ["out"]
    wrong = jax.tree.map(lambda leaf: leaf[:1], random_params(TINY))
    with refused("to be written does not fit"):
        t5x_format.save_t5x(tmp_path / "new", TINY, wrong)
    assert os.listdir(tmp_path) == ["out"]
