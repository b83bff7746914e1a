"""T5X checkpoints against T5X's golden numbers, Flax's msgpack, TensorStore, and round trips."""

import dataclasses
import os
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from etils import epath
from flax import serialization

from gkd.checkpoints import t5x_format
from gkd.checkpoints.tensors import nest, tensor_names
from gkd.decode.sampling import sample
from gkd.models import t5
from gkd.tensor_files import zarr_arrays
from tests.checkpoints.t5x_checkpoints import TINY, random_params, write_inline

GOLDEN = ["t5v11_tiny_from_hf", "t5v11_tiny_unscanned", "t5v11_tiny_scanned"]


def assert_same_bytes(got, want):
    got, want = tensor_names(got), tensor_names(want)
    assert set(got) == set(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


def scan(params, shared_bias):
    """Moves layers_i into T5X's scanned layout: a layer axis at 1, heads apart."""
    tree = {"token_embedder": params["token_embedder"]}
    for side in ("encoder", "decoder"):
        part = params[side]
        layers = [part[name] for name in sorted(part) if name.startswith("layers_")]
        named = [tensor_names(layer) for layer in layers]
        stacked = {}
        for name in named[0]:
            arrays = [layer[name] for layer in named]
            if "attention/" in name:
                heads = (TINY.num_heads, TINY.head_dim)
                out = name.endswith("out/kernel")
                arrays = [
                    a.reshape(*heads, a.shape[1]) if out else a.reshape(a.shape[0], *heads)
                    for a in arrays
                ]
            stacked[name] = np.stack(arrays, axis=1)
        rest = {name: value for name, value in part.items() if not name.startswith("layers_")}
        assert shared_bias == ("relpos_bias" in rest)
        tree[side] = {**rest, side: nest(stacked)}
    return tree


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request, shared):
    """(architecture, params of step 0, params of step 1, golden arrays, folder)."""
    folder = shared / "golden/t5x" / request.param
    config = t5x_format.open_t5x(folder / "checkpoint_0").config
    steps = [t5x_format.load_t5x(folder / f"checkpoint_{step}", config) for step in (0, 1)]
    return config, *steps, dict(np.load(folder / "golden.npz")), folder


def test_logits_equal_t5x_before_and_after_a_step(golden):
    config, before, after, want, folder = golden
    assert config.relative_bias_per_layer == ("scanned" in folder.name.split("_"))
    assert (config.num_heads, config.head_dim, config.vocab_size) == (4, 8, 384)
    apply = jax.jit(t5.T5(config).apply)
    real = want["decoder_target_tokens"] > 0
    inputs = (want["encoder_input_tokens"], want["decoder_input_tokens"])
    for params, name in ((before, "logits"), (after, "logits_after_step1_adafactor_lr1e-2")):
        got = apply({"params": params}, *inputs)
        np.testing.assert_allclose(got[real], want[name][real], atol=1e-4)


def test_greedy_tokens_equal_t5x(golden):
    config, params, _, want, _ = golden
    params = jax.tree.map(jnp.asarray, params)
    model = t5.as_seq2seq(config)
    options = {"max_length": 20, "valid": jnp.arange(384) > 0, "temperature": 0.0}

    @jax.jit
    def greedy(params, inputs):
        encoded = model.encode(params, inputs)
        return sample(model, params, encoded, jax.random.PRNGKey(0), **options)

    got = greedy(params, jnp.asarray(want["encoder_input_tokens"]))
    np.testing.assert_array_equal(got.tokens, want["greedy_tokens"])


def test_gradients_equal_t5x(golden):
    config, params, _, want, _ = golden
    targets = want["decoder_target_tokens"]

    def cross_entropy(params):
        inputs = [jnp.asarray(want[f"{side}coder_input_tokens"]) for side in ("en", "de")]
        log_probs = jax.nn.log_softmax(t5.T5(config).apply({"params": params}, *inputs))
        chosen = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
        return -jnp.sum(chosen * (targets > 0)) / np.sum(targets > 0)

    params = jax.tree.map(jnp.asarray, params)
    loss, gradients = jax.jit(jax.value_and_grad(cross_entropy))(params)
    np.testing.assert_allclose(loss, want["ce_mean"], rtol=1e-5)
    layers = [gradients["decoder"][f"layers_{i}"]["self_attention"] for i in range(2)]
    queries = [np.asarray(layer["query"]["kernel"]) for layer in layers]
    for name in [name for name in want if name.startswith("grad/")]:
        if name == "grad/token_embedder/embedding":
            got = gradients["token_embedder"]["embedding"]
        elif name == "grad/decoder/layers_0/self_attention/query/kernel":
            got = queries[0]
        else:
            assert name == "grad/decoder/decoder/self_attention/query/kernel"
            got = np.stack(queries, axis=1).reshape(32, 2, 4, 8)
        error = np.linalg.norm(got - want[name]) / np.linalg.norm(want[name])
        assert error < 1e-4, f"{name}: relative error {error}"


def test_golden_checkpoints_come_back_byte_for_byte(golden, tmp_path):
    config, params, _, _, _ = golden
    t5x_format.save_t5x(tmp_path / "checkpoint_7", config, params, step=7)
    again = t5x_format.open_t5x(tmp_path)
    assert again.config == config and again.path.name == "checkpoint_7"
    assert_same_bytes(t5x_format.load_t5x(tmp_path, config), params)


CONFIGS = {
    "plain": TINY,
    "tied relu": dataclasses.replace(
        TINY, logits_via_embedding=True, mlp_activations=("relu",), num_encoder_layers=3
    ),
    "bias per layer": dataclasses.replace(TINY, relative_bias_per_layer=True),
    "another gate": dataclasses.replace(TINY, mlp_activations=("silu", "linear")),
}


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_what_is_written_is_what_t5x_reads(kind, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_arrays, "_CHUNK_BYTES", 200)  # several chunks, the last not full
    config = CONFIGS[kind]
    params = random_params(config, dtype)
    folder = tmp_path / "model"
    t5x_format.save_t5x(folder, config, params, step=12)
    assert t5x_format.open_t5x(folder).config == config
    assert_same_bytes(t5x_format.load_t5x(folder), params)

    # T5X's own way: Flax restores the index, TensorStore opens what it says.
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    assert index["version"] == 3 and index["optimizer"]["state"]["step"] == 12
    for name, want in tensor_names(params).items():
        spec = index["optimizer"]["target"]
        for part in name.split("/"):
            spec = spec[part]
        del spec["metadata"]["chunks"], spec["metadata"]["compressor"]
        spec["kvstore"]["path"] = os.path.join(folder, spec["kvstore"]["path"])
        got = tensorstore.open(spec, open=True).result().read().result()
        heads = config.relative_bias_per_layer and "attention/" in name
        assert got.ndim == (3 if heads else want.ndim), name
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes(), name


def test_stacked_layers_are_written_apart(tmp_path):
    config = dataclasses.replace(TINY, stacked_layers=True)
    params = random_params(config)
    t5x_format.save_t5x(tmp_path / "out", config, params)
    assert t5x_format.open_t5x(tmp_path / "out").config == TINY
    assert_same_bytes(
        t5x_format.load_t5x(tmp_path / "out"),
        jax.tree.map(np.asarray, t5.unstack_layers(params)),
    )


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
def test_arrays_inside_the_index(top, pieces, tmp_path, monkeypatch):
    if pieces:
        monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 50)
    params = random_params(TINY, ml_dtypes.bfloat16 if pieces else np.float32)
    write_inline(tmp_path, params, top=top)
    assert (b"__msgpack_chunked_array__" in (tmp_path / "checkpoint").read_bytes()) == pieces
    assert_same_bytes(t5x_format.load_t5x(tmp_path), params)


def test_only_one_array_of_the_index_is_held(tmp_path):
    config = dataclasses.replace(TINY, vocab_size=1024, emb_dim=256, mlp_dim=1024)
    params = random_params(config)  # no array above 1 MB, 13 MB in all
    write_inline(tmp_path, params)
    assert_same_bytes(t5x_format.load_t5x(tmp_path, config), params)
    tracemalloc.start()
    for tensor in t5x_format.open_t5x(tmp_path, config).tensors.values():
        tensor.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 10 * largest
    assert peak < 3 * largest


def test_the_optimizers_state_is_jumped_over(tmp_path):
    params = random_params(TINY)
    target = serialization.msgpack_serialize(params)
    # {"optimizer": {"state": {"big": <3 GB of nothing>}, "target": params}}: a file with a hole.
    start = b"\x81\xa9optimizer\x82\xa5state\x81\xa3big\xc6" + struct.pack(">I", 3_000_000_000)
    with (tmp_path / "checkpoint").open("wb") as file:
        file.write(start)
        file.seek(3_000_000_000, os.SEEK_CUR)
        file.write(b"\xa6target" + target)
    tracemalloc.start()
    assert_same_bytes(t5x_format.load_t5x(tmp_path, TINY), params)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_scanned_layer_is_read_alone(tmp_path):
    config = dataclasses.replace(TINY, relative_bias_per_layer=True, num_encoder_layers=2)
    params = random_params(config)
    target = {}
    for name, array in tensor_names(scan(params, shared_bias=False)).items():
        chunks = list(array.shape)
        if name.startswith("decoder/decoder/"):
            chunks[1] = 1
        path = f"target.{name.replace('/', '.')}"
        spec = {
            "driver": "zarr",
            "dtype": "float32",
            "kvstore": {"driver": "file", "path": f"{tmp_path}/{path}/"},
            "metadata": {
                "chunks": chunks,
                "compressor": {"id": "gzip", "level": 1},
                "shape": list(array.shape),
            },
        }
        tensorstore.open(spec, create=True).result().write(array).result()
        target[name] = {**spec, "kvstore": {"driver": "gfile", "path": path}}
    write_inline(tmp_path, nest(target))
    opened = t5x_format.open_t5x(tmp_path)
    assert opened.config == config
    assert_same_bytes(t5x_format.load_t5x(tmp_path), params)
    for chunk in (tmp_path / "target.decoder.decoder.mlp.wo.kernel").glob("*.1.*"):
        chunk.unlink()
    wo = [f"decoder/layers_{i}/mlp/wo/kernel" for i in range(2)]
    np.testing.assert_array_equal(opened.tensors[wo[0]].read(), tensor_names(params)[wo[0]])
    with pytest.raises(ValueError, match="not complete"):
        opened.tensors[wo[1]].read()


def test_scanned_layers_with_one_bias(tmp_path):
    params = random_params(TINY)
    write_inline(tmp_path, scan(params, shared_bias=True))
    opened = t5x_format.open_t5x(tmp_path)
    assert opened.config == TINY and not opened.config.relative_bias_per_layer
    assert_same_bytes(t5x_format.load_t5x(tmp_path), params)


@pytest.mark.parametrize(
    "store, beside",
    [
        ({"driver": "gfile", "path": "target.x/"}, {}),
        ({"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": "target.x/"}, {}),
        ({"driver": "gcs", "bucket": "t5x-dummy-bucket"}, {"path": "target.x"}),
    ],
)
def test_old_paths_mean_beside_the_index(store, beside, tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    spec = {**zarr_arrays.write_zarr(epath.Path(tmp_path), "target.x", array), "kvstore": store}
    located = zarr_arrays.locate_zarr({**spec, **beside}, epath.Path(tmp_path), "x")
    np.testing.assert_array_equal(zarr_arrays.read_zarr(located), array)


def test_a_bucket_is_read_through_tensorstore():
    # What TensorStore's documentation wants for gs://bucket/model/checkpoint_3/target.x/.
    array = zarr_arrays.ZarrArray(
        epath.Path("gs://bucket/model/checkpoint_3"), "target.x", (2,), np.dtype(np.float32)
    )
    want = {"driver": "gcs", "bucket": "bucket", "path": "model/checkpoint_3/target.x/"}
    assert zarr_arrays._specification(array)["kvstore"] == want


def test_activations_come_from_the_gin_file_above(tmp_path):
    params = random_params(TINY)
    write_inline(tmp_path / "checkpoint_5", params)
    assert t5x_format.open_t5x(tmp_path).config.mlp_activations == ("gelu", "linear")
    gin = tmp_path / "config.gin"
    gin.write_text("# x\nnetwork.T5Config.mlp_activations = ('silu', 'linear')  # as published\n")
    assert t5x_format.open_t5x(tmp_path).config.mlp_activations == ("silu", "linear")
    for value in ("('relu',)", "%ACTIVATIONS", "__import__('os').getcwd()"):
        gin.write_text(f"network.T5Config.mlp_activations = {value}\n")
        with pytest.raises(ValueError, match="wanted two names|is no gin that can be read"):
            t5x_format.open_t5x(tmp_path)


def test_without_a_gin_file_an_mlp_without_gate_is_t5_1_0(tmp_path):
    write_inline(tmp_path, random_params(CONFIGS["tied relu"]))
    assert t5x_format.open_t5x(tmp_path).config == CONFIGS["tied relu"]


def test_the_vocabulary_travels(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"pieces")
    config, params = TINY, random_params(TINY)
    pieces = tmp_path / "spiece.model"
    t5x_format.save_t5x(tmp_path / "a/checkpoint_1", config, params, sentencepiece=pieces)
    opened = t5x_format.open_t5x(tmp_path / "a")
    assert opened.vocabulary.read_bytes() == b"pieces" and not opened.bytes_vocabulary
