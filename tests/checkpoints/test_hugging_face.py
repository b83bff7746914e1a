"""Hugging Face directories against what transformers wrote and computed (golden/hf)."""

import functools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gkd.checkpoints import hugging_face, load_hf, save_hf
from gkd.checkpoints.tensors import tensor_names
from gkd.models.t5 import T5, T5Config, stack_layers

CASES = ["t5v10_tiny", "t5v11_tiny", "t5v11_tiny_sharded", "mt5_tiny", "umt5_tiny"]
WHOLE = [name for name in CASES if "sharded" not in name]
TABLE = "shared.weight"


@pytest.fixture
def golden(shared, request, tmp_path):
    """A writable copy of one golden directory."""
    name = getattr(request, "param", "t5v11_tiny")
    return shutil.copytree(shared / "golden" / "hf" / name, tmp_path / "golden")


def _logits(config, params, arrays):
    tokens = jnp.asarray(arrays["input_ids"]), jnp.asarray(arrays["decoder_input_ids"])
    return jax.jit(T5(config).apply)({"params": jax.tree.map(jnp.asarray, params)}, *tokens)


@pytest.mark.parametrize("golden", CASES, indirect=True)
def test_logits_are_those_of_transformers(golden):
    arrays = np.load(golden / "golden.npz")
    config, params = load_hf(golden)
    written = arrays["decoder_attention_mask"] > 0
    difference = np.abs(np.asarray(_logits(config, params, arrays)) - arrays["logits"])
    assert difference[written].max() < 1e-4


@pytest.mark.parametrize("golden", WHOLE, indirect=True)
def test_tensors_come_back_byte_for_byte(golden, tmp_path):
    config, params = load_hf(golden)
    save_hf(tmp_path / "out", config, params)
    before = load_file(golden / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(before) == sorted(after)
    for name, value in before.items():
        assert (value.dtype, value.shape) == (after[name].dtype, after[name].shape)
        assert value.tobytes() == after[name].tobytes(), name
    old, new = (json.loads((d / "config.json").read_text()) for d in (golden, tmp_path / "out"))
    kept = set(old) & set(new)
    assert {"model_type", "architectures", "feed_forward_proj", "d_kv", "dropout_rate"} <= kept
    assert {name: old[name] for name in kept} == {name: new[name] for name in kept}


def test_source_dtype_and_copies_of_the_table_come_back(golden, tmp_path):
    tensors = load_file(golden / "model.safetensors")
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    half["encoder.final_layer_norm.weight"] = tensors["encoder.final_layer_norm.weight"]
    half["decoder.embed_tokens.weight"] = half[TABLE].copy()
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    save_file({**half, unused: np.zeros((32, 4), np.float32)}, golden / "model.safetensors")
    config, params = load_hf(golden)
    assert params["encoder"]["layers_0"]["mlp"]["wo"]["kernel"].dtype == ml_dtypes.bfloat16
    save_hf(tmp_path / "out", config, params)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert sorted(after) == sorted(half)
    for name, value in half.items():
        assert (after[name].dtype, after[name].tobytes()) == (value.dtype, value.tobytes()), name


def test_a_copy_that_differs_is_refused(golden):
    tensors = load_file(golden / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = -tensors[TABLE]
    save_file(tensors, golden / "model.safetensors")
    with pytest.raises(ValueError, match=r"encoder.embed_tokens.weight differs from shared.weight"):
        load_hf(golden)


def test_other_shapes_come_back(tmp_path):
    """head_dim·heads ≠ emb, unequal depths, tied relu and untied silu, a stacked tree."""
    random = np.random.default_rng(0)

    def noise(leaf):
        return random.normal(size=leaf.shape).astype(leaf.dtype)

    shapes = {"vocab_size": 50, "emb_dim": 24, "num_heads": 3, "head_dim": 5, "mlp_dim": 40}
    for extra in (
        {"mlp_activations": ("relu",), "logits_via_embedding": True},
        {"mlp_activations": ("silu", "linear"), "num_encoder_layers": 1, "num_decoder_layers": 3},
    ):
        depths = {"num_encoder_layers": 3, "num_decoder_layers": 1, **extra}
        config = T5Config(**shapes, **depths)
        shapes_of = functools.partial(T5(config).init, jax.random.PRNGKey(0))
        tokens = jax.ShapeDtypeStruct((1, 3), jnp.int32)
        boxed = jax.eval_shape(shapes_of, tokens, tokens)["params"]
        params = jax.tree.map(noise, nn.meta.unbox(boxed))
        folder = tmp_path / "-".join(config.mlp_activations)
        save_hf(folder, config, stack_layers(params))
        read, values = load_hf(folder)
        assert read == config
        jax.tree.map(np.testing.assert_array_equal, values, params)


def test_writes_shards_with_an_index(golden, shared, tmp_path):
    """transformers itself split the same weights in files of the same size."""
    config, params = load_hf(golden)
    save_hf(tmp_path / "out", config, params, largest_file=100_000)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    theirs = sorted((shared / "golden" / "hf" / "t5v11_tiny_sharded").glob("*.safetensors"))
    assert [path.name for path in files] == [path.name for path in theirs]
    for path in files:
        assert sum(value.nbytes for value in load_file(path).values()) <= 100_000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    whole = load_file(golden / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    assert sorted(index["weight_map"]) == sorted(whole)
    read, values = load_hf(tmp_path / "out")
    assert read == config
    jax.tree.map(np.testing.assert_array_equal, values, params)


@pytest.mark.parametrize("golden", WHOLE, indirect=True)
def test_a_config_without_a_family_names_it_by_its_class(golden):
    """google/umt5-small and -base were published without a model_type."""
    want = load_hf(golden)[0]
    raw = json.loads((golden / "config.json").read_text())
    del raw["model_type"]
    (golden / "config.json").write_text(json.dumps(raw))
    assert load_hf(golden)[0] == want
    for classes in (["BartForConditionalGeneration"], [3], None):
        (golden / "config.json").write_text(json.dumps(raw | {"architectures": classes}))
        with pytest.raises(ValueError, match="model_type"):
            load_hf(golden)


def test_config_says_what_is_not_supported(golden):
    text = (golden / "config.json").read_text()
    for key, value, message in [
        ("model_type", "longt5", "model_type is 'longt5': choose one of .*'mt5', .*'t5', .*'umt5'"),
        ("layer_norm_epsilon", 1e-5, "layer_norm_epsilon is 1e-05; only 1e-06"),
        ("relative_attention_num_buckets", 64, "relative_attention_num_buckets is 64; only 32"),
        ("d_model", "32", "d_model is '32': a whole number is needed"),
        ("dense_act_fn", "gelu", "activation 'gelu' .* is none of relu, silu"),
        ("num_layers", 3, "missing: encoder/layers_2/"),
        ("vocab_size", 400, "token_embedder/embedding is .384, 32., wanted .400, 32."),
    ]:
        (golden / "config.json").write_text(json.dumps({**json.loads(text), key: value}))
        with pytest.raises(ValueError, match=message):
            load_hf(golden)


def test_lists_what_is_missing_and_what_is_left_over(golden):
    tensors = load_file(golden / "model.safetensors")
    tensors["decoder.block.7.layer.0.layer_norm.weight"] = tensors.pop(
        "decoder.block.1.layer.0.layer_norm.weight"
    )
    save_file(tensors, golden / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit its architecture") as caught:
        load_hf(golden)
    message = str(caught.value)
    assert "missing: decoder/layers_1/pre_self_attention_layer_norm/scale" in message
    assert "left over" in message and "decoder.block.7.layer.0.layer_norm.weight" in message
    assert "\n" not in message


@pytest.mark.parametrize("golden", ["t5v11_tiny_sharded"], indirect=True)
def test_index_problems(golden):
    path = golden / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = "model-00001-of-00003.safetensors"
    for place, message in [
        ("../golden/" + first, "only a .safetensors file beside it is read"),
        ("/etc/passwd", "only a .safetensors file beside it is read"),
        (first, r"places .* in model-00001-of-00003.safetensors, which does not hold it"),
    ]:
        names = {**index["weight_map"], "lm_head.weight": place}
        if place == first:
            names["ghost"] = first
        path.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(ValueError, match=message):
            load_hf(golden)
    path.write_text(json.dumps(index))
    (golden / first).unlink()
    with pytest.raises(FileNotFoundError, match=f"{first} does not exist"):
        load_hf(golden)


@pytest.mark.parametrize("golden", ["t5v11_tiny_sharded"], indirect=True)
def test_a_tensor_in_two_shards_is_refused(golden):
    second = golden / "model-00002-of-00003.safetensors"
    tensors = load_file(second)
    stray = next(iter(load_file(golden / "model-00001-of-00003.safetensors").items()))
    save_file({**tensors, stray[0]: stray[1]}, second)
    with pytest.raises(
        ValueError, match=f"holds {stray[0]}, which model-00001-of-00003.safetensors has"
    ):
        load_hf(golden)


def test_weights_that_are_not_finite(golden):
    tensors = load_file(golden / "model.safetensors")
    for bad in (np.nan, np.inf):
        tensors["lm_head.weight"] = np.array(tensors["lm_head.weight"])
        tensors["lm_head.weight"][3, 4] = bad
        save_file(tensors, golden / "model.safetensors")
        with pytest.raises(ValueError, match="lm_head.weight has 1 of 12288 values that are not"):
            load_hf(golden)


def test_a_full_disk_leaves_nothing(golden, tmp_path, monkeypatch):
    config, params = load_hf(golden)

    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hugging_face, "write_safetensors", full)
    with pytest.raises(OSError, match="could not be written and was removed: .*No space"):
        save_hf(tmp_path / "out", config, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden"]


def test_never_overwrites(golden):
    config, params = load_hf(golden)
    before = (golden / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        save_hf(golden, config, params)
    assert (golden / "model.safetensors").read_bytes() == before


def test_params_that_do_not_fit(golden, tmp_path):
    config, params = load_hf(golden)
    names = tensor_names(params)
    del params["decoder"]["logits_dense"]
    assert "decoder/logits_dense/kernel" in names
    with pytest.raises(ValueError, match="missing: decoder/logits_dense/kernel"):
        save_hf(tmp_path / "out", config, params)
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite_are_never_written(golden, tmp_path):
    config, params = load_hf(golden)
    kernel = params["decoder"]["logits_dense"]["kernel"].copy()
    kernel[1, 2] = np.nan
    params["decoder"]["logits_dense"]["kernel"] = kernel
    with pytest.raises(ValueError, match="decoder/logits_dense/kernel .*not finite"):
        save_hf(tmp_path / "out", config, params)
    assert not (tmp_path / "out").exists()
