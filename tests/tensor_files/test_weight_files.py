"""Weights of all kinds against what transformers computed from them (golden/hf5, golden/hf)."""

import json
import shutil
import sys

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gkd.checkpoints import formats, load_hf, save_hf
from gkd.decode.sampling import sample
from gkd.errors import UserError
from gkd.models.t5 import T5, as_seq2seq
from gkd.tensor_files.weight_files import FLAX, SAFETENSORS, open_weights

KINDS = ["t5_hf5_flax", "t5_hf5_noshared", "t5_hf5_bin", "t5_hf5_bin_sharded"]
NEEDS_TORCH = "needs PyTorch 2.6 or later (pip install torch), which reads pytorch_model.bin"


@pytest.fixture
def golden(shared, tmp_path):
    """A writable copy of a golden directory of safetensors."""
    return shutil.copytree(shared / "golden" / "hf" / "t5v11_tiny", tmp_path / "golden")


def refused(folder, match, error=ValueError):
    with pytest.raises(error, match=match) as caught:
        formats.open_checkpoint(folder)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def read(tensors):
    return {name: tensor.read() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", KINDS)
def test_logits_and_greedy_tokens_are_those_of_transformers(shared, name):
    if "bin" in name:
        pytest.importorskip("torch", minversion="2.6", reason=NEEDS_TORCH)
    folder = shared / "golden" / "hf5" / name
    want = np.load(folder / "golden.npz")
    config, params = load_hf(folder)
    params = jax.tree.map(jnp.asarray, params)
    tokens = jnp.asarray(want["input_ids"]), jnp.asarray(want["decoder_input_ids"])
    model, valid = as_seq2seq(config), jnp.ones(config.vocab_size, bool)
    options = {"max_length": 20, "valid": valid, "temperature": 0.0}

    @jax.jit
    def score_and_write(params, *tokens):
        encoded = model.encode(params, tokens[0])
        rollout = sample(model, params, encoded, jax.random.PRNGKey(0), **options)
        return T5(config).apply({"params": params}, *tokens), rollout

    logits, rollout = score_and_write(params, *tokens)
    logits = np.asarray(logits)
    assert np.abs(logits - want["logits"])[want["decoder_attention_mask"] > 0].max() < 1e-4
    np.testing.assert_array_equal(rollout.tokens, want["greedy_sequences"][:, 1:])


def test_all_kinds_hold_the_same_tensors(shared):
    """One model was saved in four forms; Flax's orientation is the other one."""
    folder = shared / "golden" / "hf5"
    flax_params = load_hf(folder / "t5_hf5_flax")[1]
    jax.tree.map(np.testing.assert_array_equal, flax_params, load_hf(folder / "t5_hf5_noshared")[1])


def as_flax(tensors):
    """The nested parameters of transformers' Flax model, from those of its PyTorch model."""
    tree = {}
    for name, value in tensors.items():
        *parents, last = name.split(".")
        if "layer_norm" in name:
            tree[*parents, last] = value
        elif "shared" in name or "bias" in name:
            tree[*parents, "embedding"] = value
        else:
            tree[*parents, "kernel"] = np.ascontiguousarray(value.T)
    return flax.traverse_util.unflatten_dict(tree)


def test_flax_in_pieces_in_shards_and_in_bfloat16(golden, monkeypatch):
    tensors = load_file(golden / "model.safetensors")
    (golden / "model.safetensors").unlink()
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    tree = as_flax(half)
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)  # bytes; by default 1 GB
    (golden / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    found = read(open_weights(golden))
    assert set(found) == set(tensors)
    for name, value in half.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    (golden / "flax_model.msgpack").unlink()
    places = {}
    for i, side in enumerate(("encoder", "decoder"), start=1):
        shard = {side: tree[side], **({"shared": tree["shared"]} if i == 1 else {})}
        shard |= {"lm_head": tree["lm_head"]} if i == 2 else {}
        file = f"flax_model-0000{i}-of-00002.msgpack"
        (golden / file).write_bytes(flax.serialization.to_bytes(shard))
        places |= dict.fromkeys(flax.traverse_util.flatten_dict(shard, sep="/"), file)
    index = golden / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, read(open_weights(golden)), found)
    index.write_text(json.dumps({"weight_map": places | {"ghost/kernel": file}}))
    refused(golden, "places ghost.weight in flax_model-00002-of-00002.msgpack, which does not hold")
    for place in ("../x.msgpack", "pytorch_model.bin"):
        index.write_text(json.dumps({"weight_map": places | {"lm_head/kernel": place}}))
        refused(golden, "only a .msgpack file beside it is read")
    index.write_text(json.dumps({"weight_map": places}))
    (golden / file).write_bytes((golden / file).read_bytes()[:-9])
    refused(golden, "is truncated or damaged")


def test_pytorch_shards_in_bfloat16_and_a_head_tied_by_storage(golden):
    torch = pytest.importorskip("torch", minversion="2.6", reason=NEEDS_TORCH)
    tensors = load_file(golden / "model.safetensors")
    (golden / "model.safetensors").unlink()
    state = {name: torch.from_numpy(value).bfloat16() for name, value in tensors.items()}
    state["encoder.embed_tokens.weight"] = state["lm_head.weight"] = state["shared.weight"]
    parts = [dict(list(state.items())[:20]), dict(list(state.items())[20:])]
    places = {}
    for i, part in enumerate(parts, start=1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save(part, golden / file)
        places |= dict.fromkeys(part, file)
    (golden / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    config = json.loads((golden / "config.json").read_text()) | {"tie_word_embeddings": True}
    (golden / "config.json").write_text(json.dumps(config))
    config, params = load_hf(golden)
    assert config.logits_via_embedding and "lm_head.weight" in config.embedding_copies
    kernel = params["decoder"]["layers_1"]["mlp"]["wo"]["kernel"]
    name = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    np.testing.assert_array_equal(kernel, tensors[name].T.astype(ml_dtypes.bfloat16))


def test_without_pytorch_one_line_names_three_ways(golden, monkeypatch):
    (golden / "model.safetensors").unlink()
    (golden / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    ways = (
        r"hf download NAME --revision refs/pr/N.*pip install torch.*gs://t5-data/pretrained_models"
    )
    refused(
        golden,
        f"pytorch_model.bin is a file of PyTorch, which is not installed: .*{ways}",
        ImportError,
    )


def test_the_same_kind_is_read_whatever_is_installed(golden):
    """Safetensors before Flax before PyTorch; of one kind the whole file, as in transformers."""
    tensors = load_file(golden / "model.safetensors")
    (golden / "pytorch_model.bin").write_bytes(b"not read")
    (golden / "model.safetensors.index.json").write_text("not read")
    (golden / "flax_model.msgpack").write_bytes(b"not read")
    assert set(open_weights(golden)) == set(tensors)
    (golden / "model.safetensors").unlink()
    (golden / "model.safetensors.index.json").unlink()
    refused(golden, "flax_model.msgpack .*")


def test_tables_under_the_names_of_copies(golden):
    """madlad400 has the table under the decoder's name only."""
    tensors = load_file(golden / "model.safetensors")
    table = tensors.pop("shared.weight")
    for copy in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        save_file({**tensors, copy: table}, golden / "model.safetensors")
        embedding = load_hf(golden)[1]["token_embedder"]["embedding"]
        np.testing.assert_array_equal(embedding, table)


def test_an_index_that_names_a_copy_which_its_shard_left_out(shared, tmp_path):
    """The bot that converts repositories of the Hub to safetensors writes such indices."""
    folder = tmp_path / "golden"
    shutil.copytree(shared / "golden" / "hf" / "t5v11_tiny_sharded", folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    place = index["weight_map"]["lm_head.weight"]
    copies = {"decoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"}
    index["weight_map"] |= dict.fromkeys(copies, place)
    path.write_text(json.dumps(index))
    assert not copies & set(open_weights(folder))
    index["weight_map"]["decoder.final_layer_norm.bias"] = place
    path.write_text(json.dumps(index))
    refused(folder, f"places decoder.final_layer_norm.bias in {place}, which does not hold it")


def test_weights_that_are_not_read(golden):
    weights = golden / "model.safetensors"
    tensors = load_file(weights)
    encoder = {name: value for name, value in tensors.items() if "decoder" not in name}
    save_file(encoder, weights)
    refused(golden, "holds an encoder without a decoder .*: take the complete model")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    for name in ("model.safetensors", "flax_model.msgpack", "pytorch_model.bin"):
        weights.unlink()
        weights = golden / name
        weights.write_text(pointer)
        refused(golden, f"{name} is a Git LFS pointer, not the file itself")
    weights.unlink()
    refused(golden, "it holds config.json, .*was the download complete", FileNotFoundError)
    for name, message in [
        ("tf_model.h5", "tf_model.h5 is TensorFlow's weights; wanted model.safetensors or flax"),
        ("model-q4.gguf", "model-q4.gguf is llama.cpp's weights"),
        ("model.fp16.safetensors", "model.fp16.safetensors is safetensors under another name"),
        ("training.pt", "training.pt is a pickle of PyTorch"),
    ]:
        (golden / name).write_bytes(b"GGUF")
        refused(golden, message, FileNotFoundError)
        (golden / name).unlink()


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_names_its_base_model(golden, with_config):
    if not with_config:
        for path in golden.iterdir():
            path.unlink()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "google/flan-t5-xl"}
    (golden / "adapter_config.json").write_text(json.dumps(adapter))
    error = FileNotFoundError if with_config else ValueError
    refused(golden, "an adapter .* of 'google/flan-t5-xl'; merge it", error)


def test_weights_alone_are_no_checkpoint(golden):
    (golden / "config.json").unlink()
    refused(golden, "holds model.safetensors without config.json, which describes the model")


def test_what_is_read_from_flax_is_written_as_safetensors(shared, tmp_path):
    config, params = load_hf(shared / "golden" / "hf5" / "t5_hf5_flax")
    save_hf(tmp_path / "out", config, params)
    found = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(shared / "golden" / "hf5" / "t5_hf5_noshared" / "model.safetensors")
    theirs["shared.weight"] = theirs.pop("encoder.embed_tokens.weight")
    del theirs["decoder.embed_tokens.weight"]
    assert set(found) == set(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda name: "model." + name,
            r"tensors of other names, e.g. 'model\.(en|de)coder\.block\.",
        ),
        (
            lambda name: "bert." + name.replace("block", "layer"),
            "tensors of other names, e.g. 'bert",
        ),
        (lambda name: "x\n" + name, r"a tensor's name is 'x\\n"),
    ],
)
def test_tensors_of_other_names_are_not_called_an_encoder(golden, rename, message):
    tensors = {rename(name): value for name, value in load_file(golden / SAFETENSORS).items()}
    (golden / SAFETENSORS).unlink()
    (golden / FLAX).write_bytes(flax.serialization.msgpack_serialize(as_flax(tensors)))
    refused(golden, message)
    (golden / FLAX).unlink()
    save_file(tensors, golden / SAFETENSORS)
    refused(golden, message)


@pytest.mark.parametrize("name", ["a\n.safetensors", "a\0.safetensors", "a" * 256 + ".safetensors"])
def test_an_index_names_ordinary_files(golden, name):
    (golden / SAFETENSORS).unlink()
    index = {"weight_map": {"shared.weight": name}}
    (golden / (SAFETENSORS + ".index.json")).write_text(json.dumps(index))
    refused(golden, "index.json names '.*only a .safetensors file beside it is read")
    (golden / (SAFETENSORS + ".index.json")).write_text('{"weight_map": {}}')
    refused(golden, "golden holds no tensors: a T5 has encoder.block.0")
