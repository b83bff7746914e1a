"""The module of every family is found by its model type and by its architecture."""

import pytest

from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.hugging_face import families
from gkd.models.t5 import T5Config


@pytest.mark.parametrize(
    "kind, config",
    [("umt5", T5Config()), ("llama", DecoderConfig()), ("t5gemma", T5GemmaConfig())],
)
def test_model_type_and_architecture_lead_to_one_module(kind, config):
    module = families.of_model_type({"model_type": kind}, "a")
    assert module is families.of_architecture(config)
    names = module.parameter_names(config)
    assert set(names) == set(config.parameter_shapes())
    theirs = [name for name, _ in names.values()]
    assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize("kind", ["gpt2", None, ["llama"], 7])
def test_other_model_types_are_refused_with_those_that_are_read(kind):
    with pytest.raises(ValueError, match=r"a: model_type is .*: choose one of 'gemma3_text', "):
        families.of_model_type({"model_type": kind}, "a")
