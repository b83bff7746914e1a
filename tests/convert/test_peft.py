"""Adapters in PEFT's format: names, values and, where it is installed, PEFT's own outputs."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from gkd.checkpoints import formats
from gkd.cli import command_line
from gkd.convert import peft
from gkd.models.lora import LoRA
from gkd.models.t5 import T5Config
from tests.adapter_runs import CONFIG, SETTINGS, save_run
from tests.decoders.models import TINY

# A head of its own whose logits are scaled: Hugging Face's has the scale in its kernel.
SCALED = T5Config(**{**CONFIG.describe(), "scale_logits": True})


def converted(tmp_path, to, code=0, **options):
    run, adapters = save_run(tmp_path, **options)
    arguments = ["convert", str(run), str(tmp_path / to), "--to", to]
    assert command_line.main(arguments) == code
    return tmp_path / to, adapters


def test_adapters_have_the_names_and_orientation_of_pytorch(tmp_path):
    folder, adapters = converted(tmp_path, "peft")
    written = load_file(folder / "adapter_model.safetensors")
    modules = {
        "encoder.block.1.layer.0.SelfAttention.q": ("encoder", "layers_1", "attention", "query"),
        "decoder.block.0.layer.1.EncDecAttention.q": (
            "decoder", "layers_0", "encoder_decoder_attention", "query",
        ),
        "decoder.block.0.layer.2.DenseReluDense.wo": ("decoder", "layers_0", "mlp", "wo"),
    }  # fmt: skip
    for module, path in modules.items():
        pair = adapters
        for name in (*path, "kernel"):
            pair = pair[name]
        for half in ("a", "b"):
            values = written[f"base_model.model.{module}.lora_{half.upper()}.weight"]
            np.testing.assert_array_equal(values, pair[half].T)
    assert len(written) == 2 * 7  # six queries and one wo
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert {settings[name] for name in ("r", "lora_alpha")} == {SETTINGS.rank, SETTINGS.alpha}
    assert len(settings["target_modules"]) == 7 and settings["peft_type"] == "LORA"
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")


def test_adapters_of_a_decoder_only_model_are_a_causal_models(tmp_path):
    config = dataclasses.replace(TINY, family="llama")
    lora = LoRA(rank=3, alpha=12, targets=("query", "wi_0"))
    folder, adapters = converted(tmp_path, "peft", lora=lora, config=config, ends=(5, 1))
    written = load_file(folder / "adapter_model.safetensors")
    layer = adapters["decoder"]["layers_1"]
    place = "base_model.model.model.layers.1"
    for module, ours in (
        ("self_attn.q_proj", layer["self_attention"]["query"]["kernel"]),
        ("mlp.gate_proj", layer["mlp"]["wi_0"]["kernel"]),
    ):
        for half in ("a", "b"):
            values = written[f"{place}.{module}.lora_{half.upper()}.weight"]
            np.testing.assert_array_equal(values, ours[half].T)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["task_type"] == "CAUSAL_LM" and len(written) == 8


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, SCALED], ids=["plain", "scaled head"])
def test_peft_gives_the_logits_of_the_merged_model(tmp_path, config):
    torch = pytest.importorskip("torch", reason="PEFT needs PyTorch")
    theirs = pytest.importorskip("peft", reason="compared with PEFT where it is installed")
    transformers = pytest.importorskip("transformers")
    lora = LoRA(rank=3, alpha=12, targets=("query", "wo", "logits_dense"))
    folder, _ = converted(tmp_path / "a", "peft", lora=lora, config=config)
    merged, _ = converted(tmp_path / "b", "huggingface", lora=lora, config=config)
    load = transformers.AutoModelForSeq2SeqLM.from_pretrained
    tokens = torch.arange(2, 14).reshape(2, 6)
    with torch.no_grad():
        base = load(tmp_path / "a" / "base").eval()
        plain = base(input_ids=tokens, decoder_input_ids=tokens).logits.clone()
        whole = load(merged).eval()(input_ids=tokens, decoder_input_ids=tokens).logits
        adapted = theirs.PeftModel.from_pretrained(base, folder).eval()
        found = adapted(input_ids=tokens, decoder_input_ids=tokens).logits
    assert (whole - plain).abs().max() > 0.1
    np.testing.assert_allclose(found, whole, atol=1e-5 * float(whole.abs().max()))


def test_a_base_that_transformers_cannot_load_is_reported(tmp_path):
    run, _ = save_run(tmp_path)
    opened = formats.open_checkpoint(run)
    assert peft.remark(opened) == ""
    arguments = ["convert", str(tmp_path / "base"), str(tmp_path / "gkd"), "--to", "gkd"]
    assert command_line.main(arguments) == 0
    other = dataclasses.replace(opened.adapters, base=str(tmp_path / "gkd"))
    line = peft.remark(dataclasses.replace(opened, adapters=other))
    assert f"the base {tmp_path / 'gkd'} is no Hugging Face directory: `convert` it" in line


def test_a_whole_model_has_no_adapters(tmp_path, capfd):
    save_run(tmp_path)
    arguments = ["convert", str(tmp_path / "base"), str(tmp_path / "new"), "--to", "peft"]
    assert command_line.main(arguments) == 1
    assert "is a whole model: only a run with LORA has adapters" in capfd.readouterr().err
