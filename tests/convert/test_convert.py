"""The verb `convert`: every pair of formats, what travels along, and what is refused."""

import json
import pathlib
import shutil
import types

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from gkd.checkpoints import formats, load_hf, run_format
from gkd.checkpoints.tensors import read_numpy
from gkd.cli import command_line
from gkd.parallel import mesh as meshes
from gkd.runs import checkpoint_vocabulary, model_loading
from gkd.vocabularies import vocabularies
from tests import hub_server
from tests.vocabularies.tokenizer_folders import byte_bpe

NAME = "t5v11_tiny"


@pytest.fixture
def source(shared, tmp_path):
    """A Hugging Face directory in the test's own folder."""
    return shutil.copytree(shared / "golden" / "hf" / NAME, tmp_path / "source")


def convert(capfd, *arguments, code=0):
    """Runs the verb; returns what it wrote to stderr."""
    assert command_line.main(["convert", *map(str, arguments)]) == code
    return capfd.readouterr().err


def test_every_pair_of_formats_keeps_every_bit(source, tmp_path, capfd):
    """Along huggingface → gkd → t5x → gkd → huggingface → t5x → huggingface."""
    original = load_file(source / "model.safetensors")
    here = source
    for number, to in enumerate(("gkd", "t5x", "gkd", "huggingface", "t5x", "huggingface")):
        there = tmp_path / f"{number}-{to}"
        assert f"74,368 parameters) -> {there} ({to})" in convert(capfd, here, there, "--to", to)
        assert formats.recognise(there) == to
        here = there
    final = load_file(here / "model.safetensors")
    assert sorted(final) == sorted(original)
    for name, value in original.items():
        assert (final[name].dtype, final[name].tobytes()) == (value.dtype, value.tobytes()), name


def test_an_umt5_and_its_copies_survive_a_run(shared, tmp_path, capfd):
    umt5 = shared / "golden" / "hf" / "umt5_tiny"
    convert(capfd, umt5, tmp_path / "run")
    convert(capfd, tmp_path / "run", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == "umt5"
    before, after = load_hf(umt5), load_hf(tmp_path / "back")
    assert before[0] == after[0]
    jax.tree.map(np.testing.assert_array_equal, before[1], after[1])


def test_the_vocabulary_travels(source, shared, tmp_path, capfd):
    file = model_loading.vocabularies.arithmetic().sentencepiece_model_file
    pieces = pathlib.Path(file).read_bytes()
    (source / "spiece.model").write_bytes(pieces)
    (source / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T5Tokenizer", "extra_ids": 7}'
    )
    assert "vocabulary: 58 ids" in convert(capfd, source, tmp_path / "run")
    assert "vocabulary: 58 ids" in convert(capfd, tmp_path / "run", tmp_path / "back")
    assert (tmp_path / "back" / "spiece.model").read_bytes() == pieces
    tokenizer = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert tokenizer == {"tokenizer_class": "T5Tokenizer", "extra_ids": 7}
    convert(capfd, tmp_path / "run", tmp_path / "bytes", "--vocabulary", "bytes")
    config = json.loads((tmp_path / "bytes" / "config.json").read_text())
    assert config["tokenizer_class"] == "ByT5Tokenizer"
    assert formats.open_checkpoint(tmp_path / "bytes").bytes_vocabulary


def test_added_tokens_travel_through_every_format(shared, tmp_path, capfd):
    case = shared / "cases/tokenizers/added_tokens"
    if not case.is_dir():
        pytest.skip(f"needs the shared fixtures: no {case}")
    here = case
    for to in ("gkd", "t5x", "huggingface"):
        there = tmp_path / to
        assert "vocabulary: 32104 ids" in convert(capfd, here, there, "--to", to)
        opened = model_loading.open_model("MODEL", str(there))
        ids = vocabularies.encode_texts(
            checkpoint_vocabulary.vocabulary_of(opened), ["a < b { c } \n\tnew"]
        )
        assert ids == [[3, 9, 32102, 3, 115, 32100, 3, 75, 32101, 32103, 126]]
        here = there
    for path in case.iterdir():
        if path.name.startswith(("spiece", "tokenizer", "added", "special")):
            assert (here / path.name).read_bytes() == path.read_bytes()
    plain = shared / "data/t5_vocab/spiece.model"
    convert(capfd, case, tmp_path / "plain", "--to=huggingface", "--vocabulary", plain)
    assert not (tmp_path / "plain" / "added_tokens.json").exists()  # not another's tokens
    # A run keeps them, and a task with another vocabulary is told where to find this one.
    run = tmp_path / "run"
    run.mkdir()
    checkpoint_vocabulary.save_vocabulary(vocabularies.t5(str(case)), run)
    assert vocabularies.t5(str(run)).vocab_size == 32104
    opened = model_loading.open_model("STUDENT", str(case))
    task = types.SimpleNamespace(name="a", vocabulary=vocabularies.t5(str(plain)))
    with pytest.raises(ValueError, match="32104 ids, the other 32100 .set GKD_VOCABULARY to .*;"):
        checkpoint_vocabulary.check_vocabulary("STUDENT", opened, task)


def test_no_other_vocabulary_takes_a_tokenizers_place(source, capfd, tmp_path, monkeypatch):
    (source / "spiece.model").unlink(missing_ok=True)
    (source / "vocab.json").write_text("{}")
    file = model_loading.vocabularies.arithmetic().sentencepiece_model_file
    monkeypatch.setenv("GKD_VOCABULARY", str(file))
    error = convert(capfd, source, tmp_path / "run", code=1)
    assert "has its tokenizer in vocab.json, which is not read" in error
    assert error.count("\n") == 1
    convert(capfd, source, tmp_path / "run", "--vocabulary", file)


def test_a_decoder_only_model_keeps_its_ends_and_is_no_t5x(shared, tmp_path, capfd):
    source = shutil.copytree(shared / "golden/decoders/llama_tiny", tmp_path / "source")
    byte_bpe(source, ends=[1, 125])
    assert convert(capfd, source, tmp_path / "run") is not None
    run = formats.open_checkpoint(tmp_path / "run")
    assert run.config.end_ids == (1, 125)
    assert checkpoint_vocabulary.vocabulary_of(run).end_ids == (1, 125)
    for to in ("t5x", "t5x_orbax"):
        error = convert(capfd, source, tmp_path / to, f"--to={to}", code=1)
        assert "a llama is not written in T5X's format" in error and error.count("\n") == 1


def test_dtype(source, tmp_path, capfd):
    convert(capfd, source, tmp_path / "half", "--to=huggingface", "--dtype=bfloat16")
    original = load_file(source / "model.safetensors")
    for name, value in load_file(tmp_path / "half" / "model.safetensors").items():
        np.testing.assert_array_equal(value, original[name].astype(ml_dtypes.bfloat16))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_loads_its_shards_onto_a_mesh_stacked_or_not(source):
    """Each of 8 devices holds its part of the fully sharded parameters, and they are the file's."""
    mesh, rules = meshes.make_mesh(model=2), meshes.rules_for(fully_sharded=True)
    opened = model_loading.open_model("MODEL", str(source))
    loaded = model_loading.load_checkpoint(opened, mesh, rules)
    table = loaded.params["token_embedder"]["embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(192, 8)}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, load_hf(source)[1])


def test_a_stacked_run_opens_unstacked_and_loads_stacked(source, tmp_path):
    opened = model_loading.open_model("MODEL", str(source))
    config = model_loading.dataclasses.replace(opened.config, stacked_layers=True)
    description = model_loading.describe(config, None)
    run_format.save_run_checkpoint(tmp_path / "run", opened.config, opened.tensors, description)
    again = model_loading.open_model("MODEL", str(tmp_path / "run"))
    assert again.config == opened.config
    jax.tree.map(np.testing.assert_array_equal, read_numpy(again.tensors), load_hf(source)[1])
    loaded = model_loading.load_checkpoint(again, meshes.make_mesh(), meshes.rules_for())
    kernel = loaded.params["encoder"]["layers"]["mlp"]["wo"]["kernel"]
    original = load_file(source / "model.safetensors")
    for i in range(2):
        name = f"encoder.block.{i}.layer.1.DenseReluDense.wo.weight"
        np.testing.assert_array_equal(kernel[i], original[name].T)


def test_a_flipped_bit_in_a_converted_run_is_found(source, tmp_path, capfd):
    convert(capfd, source, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "0"
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    error = convert(capfd, tmp_path / "run", tmp_path / "back", code=1)
    assert "does not match its SHA-256" in error and not (tmp_path / "back").exists()


def test_refusals(source, tmp_path, capfd, monkeypatch):
    assert "there is no such folder" in convert(capfd, tmp_path / "no", tmp_path / "x", code=1)
    file = source / "config.json"
    assert "is a file: give the folder" in convert(capfd, file, tmp_path / "x", code=1)
    assert "exists already" in convert(capfd, source, source, "--to=huggingface", code=1)
    assert "invalid choice" in convert(capfd, source, tmp_path / "x", "--to=onnx", code=2)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    assert "without config.json" in convert(capfd, tmp_path / "pickled", tmp_path / "x", code=1)
    assert "is not a checkpoint" in convert(capfd, tmp_path, tmp_path / "x", code=1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_format.hashes, "write_hashes", full)
    error = convert(capfd, source, tmp_path / "x", code=1)
    assert "was removed" in error and "No space left" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pickled", "source"]


def test_a_damaged_tokenizer_of_a_run_is_written_again(tmp_path):
    vocabulary = vocabularies.t5(
        str(pathlib.Path(vocabularies.__file__).with_name("arithmetic.model"))
    )
    content = pathlib.Path(vocabularies.__file__).with_name("arithmetic.model").read_bytes()
    for damaged in (b"", b"junk", content[:100]):
        (tmp_path / "spiece.model").write_bytes(damaged)
        checkpoint_vocabulary.save_vocabulary(vocabulary, tmp_path)
        assert (tmp_path / "spiece.model").read_bytes() == content
    (tmp_path / "spiece.model").unlink()
    (tmp_path / "spiece.model").mkdir()
    with pytest.raises(OSError, match="cannot write .*spiece.model"):
        checkpoint_vocabulary.save_vocabulary(vocabulary, tmp_path)


def test_a_model_of_the_hub_is_converted_by_its_name(source, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with hub_server.serve(tmp_path / "cache", monkeypatch) as server:
        server.repositories["google/tiny"] = {"refs/pr/2": source}
        err = convert(capfd, "google/tiny@refs/pr/2", tmp_path / "out", "--to=huggingface")
        _, commit = server.commit("google/tiny", "refs/pr/2")
        assert f"google/tiny@{commit} (huggingface, 74,368 parameters) -> " in err
        assert "SRC: google/no: there is no" in convert(capfd, "google/no", tmp_path / "x", code=1)
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "out"))
    assert {n: v.tobytes() for n, v in before.items()} == {n: v.tobytes() for n, v in after.items()}
