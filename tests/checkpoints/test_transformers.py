"""What `save_hf` writes, loaded by transformers itself, where it and torch are installed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.checkpoints import load_hf, load_t5x, save_hf
from gkd.models.t5 import T5, T5Config

REASON = "needs torch and transformers 4 (pip install torch 'transformers<5'): they load the result"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytestmark = pytest.mark.skipif(transformers.__version__ >= "5", reason="transformers 5 ties heads")


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
    source = shared / "golden" / "hf" / name
    arrays = np.load(source / "golden.npz")
    config, params = load_hf(source)
    save_hf(tmp_path / "out", config, params, largest_file=1e5)
    inputs, outputs = arrays["input_ids"].astype(int), arrays["decoder_input_ids"].astype(int)
    got, logits = _their_logits(tmp_path / "out", inputs, outputs)
    assert got == kind
    written = arrays["decoder_attention_mask"] > 0
    np.testing.assert_allclose(logits[written], arrays["logits"][written], atol=1e-4)


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
        save_hf(folder, config, tree)
        ours = T5(config).apply({"params": jax.tree.map(jnp.asarray, tree)}, *tokens)
        _, theirs = _their_logits(folder, inputs, outputs)
        np.testing.assert_allclose(theirs, np.asarray(ours), atol=1e-4)
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 1
