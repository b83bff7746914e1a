"""Models by their names on the Hub: a stand-in serves what our own writer wrote."""

import concurrent.futures
import json
import shutil
import sys

import numpy as np
import pytest

from gkd.checkpoints import formats, load_hf, save_hf
from gkd.checkpoints.hub_models import local_copy
from gkd.checkpoints.tensors import read_numpy, tensor_names
from gkd.errors import UserError
from tests import hub_server
from tests.checkpoints.t5x_checkpoints import TINY, random_params

TOKENIZER = {"spiece.model", "tokenizer_config.json"}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A repository with weights of all kinds, of which only safetensors are real."""
    repository = tmp_path_factory.mktemp("saved") / "repository"
    save_hf(repository, TINY, random_params(TINY))
    (repository / "spiece.model").write_bytes(b"pieces")
    (repository / "tokenizer_config.json").write_text("{}")
    for name in ("README.md", "tf_model.h5", "pytorch_model.bin", "flax_model.msgpack"):
        (repository / name).write_bytes(b"not read")
    return repository


@pytest.fixture
def server(saved, tmp_path, monkeypatch):
    """A stand-in with the model google/tiny, in its own folder `repository`."""
    monkeypatch.chdir(tmp_path)
    repository = shutil.copytree(saved, tmp_path / "repository")
    with hub_server.serve(tmp_path / "cache", monkeypatch) as server:
        server.repositories["google/tiny"] = {"main": repository, "refs/pr/2": repository}
        yield server


def refused(name, match, error=FileNotFoundError):
    with pytest.raises(error, match=match) as caught:
        formats.open_checkpoint(name)
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


def assert_same_weights(opened):
    want = tensor_names(random_params(TINY))
    got = tensor_names(read_numpy(opened.tensors))
    assert set(got) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_what_is_read_is_downloaded_and_nothing_else(server, tmp_path):
    opened = formats.open_checkpoint("google/tiny")
    assert opened.format == "huggingface"
    assert_same_weights(opened)
    commit = opened.path.name
    assert opened.name == f"google/tiny@{commit}" and len(commit) == 40
    assert set(server.files) == {"config.json", "generation_config.json", WEIGHTS, *TOKENIZER}
    server.files.clear()
    for name in ("google/tiny@refs/pr/2", opened.name):
        assert formats.open_checkpoint(name).name == opened.name
    assert load_hf("google/tiny")[0] == TINY
    assert not server.files


def test_shards_are_those_of_the_index(server, tmp_path):
    repository = tmp_path / "sharded"
    config, params = load_hf(server.repositories["google/tiny"]["main"])
    save_hf(repository, config, params, largest_file=3000)
    shards = {path.name for path in repository.glob("model-*.safetensors")}
    (repository / "model-99999-of-00001.safetensors").write_bytes(b"not read")
    server.repositories["google/sharded"] = {"main": repository}
    assert_same_weights(formats.open_checkpoint("google/sharded"))
    assert {name for name in server.files if name.startswith("model-")} == shards and len(
        shards
    ) > 1


def test_without_the_hub_the_cache_serves(server, tmp_path, monkeypatch, caplog):
    commit = formats.open_checkpoint("google/tiny@refs/pr/2").path.name
    hub_server.point_to(hub_server.closed_port(), tmp_path / "cache", monkeypatch)
    for revision in ("refs/pr/2", commit):
        assert_same_weights(formats.open_checkpoint(f"google/tiny@{revision}"))
        assert f"is read from huggingface_hub's cache, commit {commit}" in caplog.text
    refused("google/tiny", "^google/tiny: there is no such folder, and .* cannot be reached")
    (tmp_path / "cache/models--google--tiny/snapshots" / commit / WEIGHTS).unlink()
    refused(f"google/tiny@{commit}", "cannot be reached.*cache holds only a part of it")


def test_a_commit_outlives_its_repository(server):
    name = formats.open_checkpoint("google/tiny").name
    del server.repositories["google/tiny"]
    assert_same_weights(formats.open_checkpoint(name))
    refused("google/tiny", "has no model of this name that you may read")


def test_several_processes_use_one_cache(server):
    """huggingface_hub locks its files; its locks are the same between threads."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(local_copy, ["google/tiny"] * 4))
    assert len(folders) == 1
    assert server.files.count(WEIGHTS) == 1
    assert_same_weights(formats.open_checkpoint("google/tiny"))


def test_a_local_folder_comes_first(server, tmp_path):
    shutil.copytree(tmp_path / "repository", tmp_path / "google" / "tiny")
    opened = formats.open_checkpoint("google/tiny")
    assert opened.name == "google/tiny" and not server.requests


def test_a_pickle_is_not_downloaded_where_it_cannot_be_read(server, tmp_path, monkeypatch):
    for name in (WEIGHTS, "flax_model.msgpack"):
        (tmp_path / "repository" / name).unlink()
    monkeypatch.setitem(sys.modules, "torch", None)
    ways = r"`google/tiny@refs/pr/N`.*pip install torch.*gs://t5-data"
    refused("google/tiny", f"^google/tiny: pytorch_model.bin is a file .*{ways}", ImportError)
    assert not server.files


def test_repositories_without_a_model_that_is_read(server, tmp_path):
    repository = tmp_path / "repository"
    for path in repository.iterdir():
        if path.name not in ("config.json", "tf_model.h5"):
            path.unlink()
    refused("google/tiny", "no model that is read: tf_model.h5 is TensorFlow's", ValueError)
    (repository / "tf_model.h5").unlink()
    refused("google/tiny", "no model that is read: it holds config.json; wanted", ValueError)
    (repository / "adapter_config.json").write_text(json.dumps({}))
    refused("google/tiny", r"no model that is read: it is an adapter \(PEFT\)", ValueError)


def test_weights_without_a_description(server, tmp_path):
    (tmp_path / "repository" / "config.json").unlink()
    refused("google/tiny", "holds model.safetensors without config.json", ValueError)
