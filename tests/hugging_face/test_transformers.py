"""Folders of `save_hf` loaded by transformers itself, if it and torch are installed."""

import numpy as np
import pytest

from gkd.checkpoints import load_hf, save_hf

REASON = (
    "needs torch and transformers 4 or 5 (pip install torch transformers): they load the result"
)
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
IS_5 = int(transformers.__version__.split(".")[0]) >= 5


def loaded(kind, source, folder, random=()):
    """The model that transformers makes of what is written; it may miss what is named random."""
    save_hf(folder, *load_hf(source), largest_file=2e4)
    model, found = getattr(transformers, kind).from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    missing = [name for name in found["missing_keys"] if not any(word in name for word in random)]
    assert not missing and not found["unexpected_keys"], found
    return model.eval()


@pytest.mark.parametrize(
    "name",
    ["qwen3_tiny", "qwen3_untied", "qwen2_tiny", "llama_tiny", "smollm2_tiny", "gemma3_tiny"],
)
def test_transformers_gives_the_same_logits_of_a_decoder_only_model(shared, tmp_path, name):
    source = shared / "golden" / "decoders" / name
    arrays, model = np.load(source / "golden.npz"), loaded("AutoModelForCausalLM", source, tmp_path)
    mask = torch.tensor(arrays["attention_mask"]).long()
    with torch.no_grad():
        logits = model(torch.tensor(arrays["input_ids"]).long(), attention_mask=mask).logits
    seen = arrays["attention_mask"] == 1
    np.testing.assert_allclose(logits.numpy()[seen], arrays["logits"][seen], atol=1e-5)


def test_transformers_gives_the_same_logits_of_t5gemma(shared, tmp_path):
    source = shared / "golden" / "t5gemma" / "t5gemma_tiny"
    arrays, model = (
        np.load(source / "golden.npz"),
        loaded("AutoModelForSeq2SeqLM", source, tmp_path),
    )
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    given = {name: torch.tensor(arrays[name]).long() for name in names}
    with torch.no_grad():
        logits = model(**given).logits.numpy()
    seen = arrays["decoder_attention_mask"] == 1
    wanted = arrays["logits" if IS_5 else "logits_hf4"]  # another window of the encoder
    np.testing.assert_allclose(logits[seen], wanted[seen], atol=1e-5)


@pytest.mark.skipif(not IS_5, reason="needs transformers 5, the first with T5Gemma 2")
def test_transformers_gives_the_same_logits_of_t5gemma_2(shared, tmp_path):
    source = shared / "golden" / "t5gemma" / "t5gemma2_tiny"
    arrays = np.load(source / "golden.npz")
    images = ("vision_tower", "multi_modal_projector", "eoi_embedding")
    model = loaded("AutoModelForSeq2SeqLM", source, tmp_path, random=images)
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    given = {name: torch.tensor(arrays[name]).long() for name in names}
    with torch.no_grad():
        logits = model(**given).logits.numpy()
    seen = arrays["decoder_attention_mask"] == 1
    np.testing.assert_allclose(logits[seen], arrays["logits"][seen], atol=1e-5)
