"""The description in a checkpoint, and errors that name the role."""

import dataclasses
import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.checkpoints import formats, hashes
from gkd.checkpoints.run_format import save_run_checkpoint
from gkd.data.task_spec import TaskSpec
from gkd.decoders.rotary import Rope
from gkd.models import interface
from gkd.models.t5 import T5Config
from gkd.models.t5x_adapter import T5XModel
from gkd.parallel import mesh as meshes
from gkd.parallel.model_sharding import UNSHARDED
from gkd.runs import model_loading
from gkd.vocabularies import vocabularies
from tests.decoders.models import TINY
from tests.random_params import random_params
from tests.vocabularies.tokenizer_folders import byte_bpe


def test_an_architecture_is_described_field_by_field():
    config = T5Config(vocab_size=64, emb_dim=16)
    found = model_loading.describe(config, vocabularies.byte_level())["model"]
    assert found["emb_dim"] == 16 and set(found) <= set(dataclasses.asdict(config))


def test_computation_is_in_bfloat16_but_on_a_cpu(run):
    """Whatever the architecture or the checkpoint says; parameters are float32."""
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    assert model_loading.default_dtype(mesh) == "float32"
    tpu = mock.Mock(spec=jax.sharding.Mesh)
    tpu.devices = np.array([types.SimpleNamespace(platform="tpu")])
    assert model_loading.default_dtype(tpu) == "bfloat16"
    for own in ("float32", "bfloat16"):
        config = dataclasses.replace(CONFIG, dtype=own)
        assert load(config).config.dtype == load(config, run[0]).config.dtype == "float32"
        assert load(config, dtype="bfloat16").config.dtype == "bfloat16"
    params = jax.tree.leaves(load(CONFIG, dtype="bfloat16").shapes)
    assert {leaf.dtype.name for leaf in params} == {"float32"}


@pytest.mark.parametrize("depths", [(8, 1), (1, 8), (7, 7)])
def test_layers_are_stacked_from_eight_on_but_not_on_a_cpu(depths, monkeypatch):
    sizes = dict(zip(("num_encoder_layers", "num_decoder_layers"), depths, strict=True))
    config = dataclasses.replace(CONFIG, **sizes)
    own = dataclasses.replace(CONFIG, stacked_layers=True)
    for on_cpu in (True, False):
        monkeypatch.setattr(model_loading, "_on_cpu", lambda mesh, on_cpu=on_cpu: on_cpu)
        assert load(config).config.stacked_layers == (8 in depths and not on_cpu)
        for forced in (True, False):
            assert load(config, stacked_layers=forced).config.stacked_layers == forced
        assert load(own).config.stacked_layers and not load(CONFIG).config.stacked_layers


@pytest.mark.parametrize("role", ["STUDENT", "TEACHER"])
def test_a_missing_checkpoint_is_one_line_that_names_its_role(role, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{role}: checkpoint .*none: there is no such"):
        model_loading.open_model(role, str(tmp_path / "none"))


def test_a_model_is_announced_before_it_is_read(run, capsys):
    load(None, run[0])
    assert capsys.readouterr().err == f"loading STUDENT {run[0]}\n"
    opened = model_loading.open_model("MODEL", run[0])
    capsys.readouterr()
    model_loading.load_checkpoint(opened, meshes.make_mesh(), meshes.rules_for())
    assert capsys.readouterr().err == f"loading MODEL {opened.name}\n"


CONFIG = T5Config(
    vocab_size=512, emb_dim=32, num_heads=2, head_dim=8, mlp_dim=640, num_encoder_layers=1,
    num_decoder_layers=1,
)  # fmt: skip
TASK = TaskSpec("texts", vocabularies.byte_level(), None, lambda row: row)


@pytest.fixture
def run(tmp_path):
    """A run's folder with one step of CONFIG, and its parameters."""
    params = random_params(CONFIG.build())
    description = model_loading.describe(CONFIG, TASK.vocabulary)
    save_run_checkpoint(tmp_path / "run", CONFIG, params, description)
    return str(tmp_path / "run"), params


def load(architecture, checkpoint=None, **options):
    return model_loading.load_model(
        "STUDENT", meshes.make_mesh(), meshes.rules_for(), TASK, architecture, checkpoint, **options
    )


def test_a_students_checkpoint_is_opened_and_hashed_once(run, monkeypatch):
    """The parameters are read later, at step 0, without reading every byte a second time."""
    folder, params = run
    hashed, opened = [], []
    sha256, open_checkpoint = hashes._sha256, formats.open_checkpoint

    def counted_sha256(path):
        hashed.append((path.name, path.stat().length))
        return sha256(path)

    def counted_open(*given):
        opened.append(given)
        return open_checkpoint(*given)

    monkeypatch.setattr(hashes, "_sha256", counted_sha256)
    monkeypatch.setattr(formats, "open_checkpoint", counted_open)
    student = load(None, folder, with_params=False)
    read = model_loading.initial_params(student, seed=0)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    large = [name for name, size in hashed if size > 1 << 16]  # smaller ones are always compared
    assert len(large) == len(set(large)) > 0
    assert len(opened) == 1


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_something_else_than_an_architecture_is_one_line_that_names_its_type(run, with_checkpoint):
    with pytest.raises(ValueError, match="STUDENT_MODEL is SimpleNamespace, which is not") as found:
        load(types.SimpleNamespace(vocab_size=512), run[0] if with_checkpoint else None)
    assert "\n" not in str(found.value)


def test_an_architecture_beside_a_checkpoint_must_be_its_own(run):
    assert load(dataclasses.replace(CONFIG, dropout_rate=0.1), run[0]).config == CONFIG
    with pytest.raises(ValueError, match="STUDENT_MODEL has mlp_dim=64, but the checkpoint .* 640"):
        load(dataclasses.replace(CONFIG, mlp_dim=64), run[0])


def test_the_ends_of_a_model_file_need_not_be_the_checkpoints(tmp_path):
    """They are the vocabulary's, whose chats may end with another id of the same list."""
    config = dataclasses.replace(TINY, vocab_size=512)
    vocabulary = vocabularies.from_folder(byte_bpe(tmp_path / "vocabulary", ends=[256, 258]))
    task = dataclasses.replace(TASK, vocabulary=vocabulary)
    description = model_loading.describe(config, vocabulary)
    folder = tmp_path / "run"
    save_run_checkpoint(folder, config, random_params(config.build()), description)
    rules = meshes.rules_for()
    load = functools.partial(
        model_loading.load_model, "STUDENT", meshes.make_mesh(), rules, task, checkpoint=str(folder)
    )
    assert load(dataclasses.replace(config, end_ids=(5, 1))).config.end_ids == (256, 258)
    with pytest.raises(ValueError, match="STUDENT_MODEL has rope="):
        load(dataclasses.replace(config, rope=Rope(3.0), end_ids=(5, 1)))


def test_a_t5x_module_runs_itself_with_the_checkpoints_parameters(run):
    """Its architecture stays when dropout is switched off, which it is while dropout is 0."""
    module = types.SimpleNamespace(config=None, init=None)

    class Unchecked(T5XModel):
        """Builds this project's T5 in place of a T5X module, which is not installed."""

        def build(self, sharding=UNSHARDED):
            return self.config.build(sharding)

    own = Unchecked(module, dataclasses.replace(CONFIG, dropout_rate=0.1))
    loaded = model_loading.with_dropout(load(own, run[0]), 0.0)
    assert isinstance(loaded.config, Unchecked) and loaded.config.module is module
    with pytest.raises(ValueError, match="^STUDENT_MODEL: .*T5X module: set its dtype"):
        load(own, run[0], dtype="bfloat16")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [400, 512, 600])
def test_a_model_scores_as_many_ids_as_the_other(size, tied):
    """Its logits of the vocabulary's ids are NumPy's products with the head's rows or columns."""
    config = dataclasses.replace(CONFIG, logits_via_embedding=tied)
    model = model_loading.with_scored_ids(load(config), size).model
    params = random_params(load(config).model)
    hidden = np.random.default_rng(1).normal(size=(2, 3, 32)).astype(np.float32)
    found = np.asarray(interface.project(jnp.asarray(hidden), model.head(params)))
    kernel = (
        np.asarray(params["token_embedder"]["embedding"]).T / np.sqrt(32)
        if tied
        else np.asarray(params["decoder"]["logits_dense"]["kernel"])
    )
    own = min(size, 512)
    assert found.shape == (2, 3, size) == (2, 3, model.vocab_size)
    np.testing.assert_allclose(found[..., :own], hidden @ kernel[:, :own], rtol=1e-4, atol=1e-4)
    assert not found[..., own:].any()
