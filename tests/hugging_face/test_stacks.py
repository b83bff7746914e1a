"""Windows and positions of published configurations."""

import pytest

from gkd.decoders.decoder_only import DecoderConfig, shortest_pattern
from gkd.decoders.rotary import Rope
from gkd.hugging_face.stacks import read_stack

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
