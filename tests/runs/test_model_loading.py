"""What a checkpoint describes of itself, and errors that name the role."""

import dataclasses

import jax
import pytest

from gkd.models.t5 import T5Config
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.vocabularies import vocabularies


def test_a_vocabulary_is_described_by_its_size_and_pieces():
    found = model_loading.describe_vocabulary(vocabularies.byte_level())
    assert (found["size"], found["bytes"]) == (vocabularies.byte_level().vocab_size, True)
    other = model_loading.describe_vocabulary(vocabularies.arithmetic())
    assert other["size"] == 51 and not other["bytes"] and other["sha256"] != found["sha256"]


def test_an_architecture_is_described_field_by_field():
    config = T5Config(vocab_size=64, emb_dim=16)
    found = model_loading.describe(config, vocabularies.byte_level())["model"]
    assert found["emb_dim"] == 16 and set(found) <= set(dataclasses.asdict(config))


def test_models_that_do_not_learn_are_float32_on_a_cpu():
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    assert model_loading.inference_dtype(mesh) == "float32"


@pytest.mark.parametrize("role", ["STUDENT", "TEACHER"])
def test_a_missing_checkpoint_is_one_line_that_names_its_role(role, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{role}: checkpoint .*none: there is no such"):
        model_loading.open_model(role, str(tmp_path / "none"))
