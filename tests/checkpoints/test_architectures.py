"""Descriptions of architectures lead back to them."""

import pytest

from gkd.checkpoints.architectures import from_description
from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.models.t5 import T5Config


@pytest.mark.parametrize("config", [T5Config(), DecoderConfig(), T5GemmaConfig()])
def test_every_description_makes_its_architecture(config):
    assert from_description(config.describe(), "a") == config


@pytest.mark.parametrize(
    "saved, words",
    [
        ({"architecture": "mamba"}, "a: architecture 'mamba' is not one of t5, decoder_only"),
        ({"architecture": "decoder_only", "widht": 1}, "unknown field 'widht'"),
        ({"architecture": "decoder_only", "rope": {"theta": "x"}}, "a, rope: theta is 'x'"),
        ({"architecture": "decoder_only", "rope": 7}, "a: rope is 7"),
        ({"architecture": "t5gemma"}, "a has no encoder"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(saved, words):
    with pytest.raises(ValueError, match=words):
        from_description(saved, "a")
