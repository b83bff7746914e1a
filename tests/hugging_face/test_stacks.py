"""Windows and positions of published configurations."""

import dataclasses

import pytest

from gkd.decoders.decoder_only import DecoderConfig, shortest_pattern
from gkd.decoders.rotary import Rope
from gkd.errors import InvalidValue
from gkd.hugging_face import decoder_only
from gkd.hugging_face.stacks import read_stack
from tests.decoders.models import PATTERNED, TINY

SIZES = {
    "vocab_size": 8, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8,
    "num_hidden_layers": 8,
}  # fmt: skip


def test_patterns_are_as_short_as_can_be():
    assert shortest_pattern([512] * 5 + [0] + [512] * 5 + [0] + [512] * 2) == (512,) * 5 + (0,)
    assert shortest_pattern([0, 0, 4096, 4096]) == (0, 0, 4096, 4096)
    assert DecoderConfig(num_layers=4, layer_windows=(8, 0)).windows == (8, 1 << 30, 8, 1 << 30)


@pytest.mark.parametrize(
    "family, raw, windows",
    [
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}, (0,)),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 6},
         (0,) * 6 + (64,) * 2),
        ("gemma3_text", {"sliding_window": 64}, (64,) * 5 + (0,)),
        ("gemma3_text", {"sliding_window": 64, "sliding_window_pattern": 2}, (64, 0)),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": None},
         (0,)),
        ("t5gemma", {"sliding_window": 64}, (64, 0)),
        ("llama", {}, (0,)),
    ],
)  # fmt: skip
def test_windows_of_each_family(family, raw, windows):
    assert read_stack({**SIZES, **raw}, family, "a")["layer_windows"] == windows


def test_gemma_scales_the_positions_of_whole_layers_only():
    """As Gemma 3 4B: a linear factor of 8, and theta 10,000 in layers with a window."""
    raw = {"rope_theta": 1e6, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    stack = read_stack({**SIZES, **raw}, "gemma3_text", "a")
    assert stack["rope"] == Rope(1e6, 8.0) and stack["local_rope"] == Rope(1e4)


@pytest.mark.parametrize(
    "family, raw, rope",
    [
        ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 5e5}, Rope(5e5)),
        ("llama", {"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 5e5}, Rope(7.0)),
        ("llama", {"rope_parameters": {}, "rope_scaling": {"type": "linear", "factor": 2.0}},
         Rope(1e4, 2.0)),
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
         Rope(1e6, 8.0)),
    ],
)  # fmt: skip
def test_the_old_fields_of_positions_hold_where_the_new_ones_are_silent(family, raw, rope):
    stack = read_stack({**SIZES, **raw}, family, "a")
    assert stack["rope"] == rope
    assert stack["local_rope"] == (Rope(1e4) if family == "gemma3_text" else None)


def test_fields_of_gemma_mean_nothing_to_other_families():
    """Transformers ignores them there."""
    raw = dict.fromkeys(
        ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"), 3.0
    )
    names = ("query_scale", "attention_soft_cap", "logits_soft_cap")
    for family, values in (("qwen3", [None] * 3), ("gemma3_text", [3.0] * 3)):
        stack = read_stack({**SIZES, **raw}, family, "a")
        assert [stack[name] for name in names] == values


GEMMA = dataclasses.replace(
    PATTERNED, family="gemma3_text", attention_biases=False, layer_windows=(3, 3, 0)
)


def read_back(config):
    raw, generation = decoder_only.write_config(config, {}, "float32", None)
    return raw, decoder_only.read(raw, generation, {}, "a")[0]


@pytest.mark.parametrize("windows", [(0,), (3,), (3, 3, 0)])
def test_layers_of_any_pattern_are_written_as_they_are(windows):
    """Gemma's default pattern fills in what a file leaves out."""
    config = dataclasses.replace(GEMMA, layer_windows=windows, query_scale=None)
    raw, found = read_back(config)
    kinds = {0: "full_attention", 3: "sliding_attention"}
    assert raw["layer_types"] == [kinds[w] for w in (windows * 3)[:3]]
    assert found.windows == config.windows and found.attention_scale == 6**-0.5


@pytest.mark.parametrize(
    "config, changes, name",
    [
        (TINY, {"family": "qwen3"}, "qk_norms=False"),
        (TINY, {"family": "llama", "scale_embeddings": True}, "scale_embeddings=True"),
        (TINY, {"family": "llama", "logits_soft_cap": 3.0}, "logits_soft_cap=3.0"),
        (TINY, {"family": "llama", "query_scale": 5}, "attention_scale="),
        (TINY, {"family": "qwen2", "layer_windows": (3, 5)}, "attention_biases=False"),
        (GEMMA, {"layer_windows": (3, 5)}, "windows=(3, 5, 3)"),
        (GEMMA, {"local_rope": Rope(10.0, 2.0)}, "rope="),
        (GEMMA, {"post_norms": False}, "post_norms=False"),
    ],
)
def test_a_model_that_its_family_cannot_describe_is_refused(config, changes, name):
    with pytest.raises(InvalidValue) as raised:
        read_back(dataclasses.replace(config, **changes))
    assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "family, numbers",
    [
        ("qwen3", {"rope_theta": 1000000}),
        ("qwen2", {"rope_theta": 1000000}),
        ("llama", {"rope_theta": 100000, "rms_norm_eps": 1e-05}),
        ("llama", {"rope_theta": 500000, "rope_scaling": {
            "rope_type": "llama3", "factor": 32, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 8192}}),
        ("gemma3_text", {"rope_theta": 1000000, "rope_local_base_freq": 10000}),
        ("gemma3_text", {"rope_theta": 1000000, "rope_scaling": {
            "rope_type": "linear", "factor": 8}, "rope_local_base_freq": 10000}),
    ],
)  # fmt: skip
def test_a_model_whose_json_has_integers_is_written(family, numbers):
    """Published files have 1000000 as often as 1000000.0."""
    raw = SIZES | numbers | {"model_type": family, "eos_token_id": 1}
    config, _ = decoder_only.read(raw, {}, {}, "a")
    written, found = read_back(config)
    assert written["rope_theta"] == numbers["rope_theta"]
    for name in ("rope_local_base_freq", "rope_scaling"):
        assert written.get(name) == numbers.get(name, written.get(name))
    assert (found.rope, found.local_rope) == (config.rope, config.local_rope)


def test_a_special_id_beyond_the_table_is_left_out():
    """Transformers refuses a padding id that is no row of the table."""
    raw, _ = read_back(dataclasses.replace(TINY, family="llama"))
    assert (raw["pad_token_id"], raw["bos_token_id"]) == (None, None)
    raw, _ = read_back(dataclasses.replace(TINY, family="llama", pad_token_id=39, bos_token_id=-1))
    assert (raw["pad_token_id"], raw["bos_token_id"]) == (39, -1)
