"""Output of `save_hf` loaded by transformers itself, if it and torch are installed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.checkpoints import load_hf, load_t5x, save_hf
from gkd.models.t5 import T5, T5Config
from tests.checkpoints.head_models import logits_of, model_of

REASON = (
    "needs torch and transformers 4 or 5 (pip install torch transformers): they load the result"
)
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
IS_5 = int(transformers.__version__.split(".")[0]) >= 5
UMT5_REASON = "transformers 5 divides the logits of every umT5 by √d_model"


def _their_logits(folder, inputs, outputs):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, torch_dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor(inputs),
            attention_mask=torch.tensor((inputs > 0).astype(np.int64)),
            decoder_input_ids=torch.tensor(outputs),
        )
    return type(model).__name__, result.logits.numpy()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("t5v10_tiny", "T5ForConditionalGeneration"),
        ("t5v11_tiny_sharded", "T5ForConditionalGeneration"),
        ("mt5_tiny", "MT5ForConditionalGeneration"),
        ("umt5_tiny", "UMT5ForConditionalGeneration"),
    ],
)
def test_transformers_gives_the_same_logits(shared, tmp_path, name, kind):
    if name == "umt5_tiny" and IS_5:
        pytest.skip(UMT5_REASON)
    source = shared / "golden" / "hf" / name
    arrays = np.load(source / "golden.npz")
    config, params = load_hf(source)
    save_hf(tmp_path / "out", config, params, largest_file=1e5)
    inputs, outputs = arrays["input_ids"].astype(int), arrays["decoder_input_ids"].astype(int)
    got, logits = _their_logits(tmp_path / "out", inputs, outputs)
    assert got == kind
    written = arrays["decoder_attention_mask"] > 0
    np.testing.assert_allclose(logits[written], arrays["logits"][written], atol=1e-4)


@pytest.mark.parametrize("family", ["t5relu", "t5", "mt5", "umt5"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_transformers_scales_the_logits_of_every_head_as_we_do(tmp_path, family, tied, scaled):
    if family == "umt5" and IS_5 and not (tied and scaled):
        pytest.skip(UMT5_REASON)
    config, params = model_of(family, tied, scaled)
    save_hf(tmp_path / "out", config, params)
    random = np.random.default_rng(0)
    inputs, outputs = random.integers(2, 50, (2, 7)), random.integers(2, 50, (2, 5))
    ours = logits_of(config, params, inputs, outputs)
    _, theirs = _their_logits(tmp_path / "out", inputs, outputs)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_transformers_gives_the_logits_of_a_model_of_ours(shared, tmp_path):
    """A scanned T5X model, and one with a gated silu, unequal depths and joined heads ≠ emb."""
    random = np.random.default_rng(0)
    inputs, outputs = random.integers(2, 50, (2, 7)), random.integers(2, 50, (2, 5))
    config = T5Config(
        vocab_size=50, emb_dim=24, num_heads=3, head_dim=5, mlp_dim=40, num_encoder_layers=1,
        num_decoder_layers=3, mlp_activations=("silu", "linear"),
    )  # fmt: skip
    import flax.linen as nn

    tokens = jnp.asarray(inputs), jnp.asarray(outputs)
    params = nn.meta.unbox(T5(config).init(jax.random.PRNGKey(0), *tokens)["params"])
    scanned = shared / "golden" / "t5x" / "t5v11_tiny_scanned" / "checkpoint_0"
    for folder, tree in ((tmp_path / "a", params), (tmp_path / "b", None)):
        if tree is None:
            from gkd.checkpoints.t5x_format import open_t5x

            config, tree = open_t5x(scanned).config, load_t5x(scanned)
        if config.relative_bias_per_layer and IS_5:
            continue  # written as an umT5
        save_hf(folder, config, tree)
        ours = T5(config).apply({"params": jax.tree.map(jnp.asarray, tree)}, *tokens)
        _, theirs = _their_logits(folder, inputs, outputs)
        np.testing.assert_allclose(theirs, np.asarray(ours), atol=1e-4)
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 1
