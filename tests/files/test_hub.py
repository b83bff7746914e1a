"""Names of the Hub, and a stand-in for it that answers on the loopback."""

import os
import pathlib
import time

import pytest

from gkd.checkpoints import formats, load_hf
from gkd.errors import MissingFile, UserError
from gkd.files import hub
from gkd.vocabularies import vocabularies
from tests import hub_server


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "config.json").write_text("{}")
    (repository / "weights.bin").write_bytes(bytes(5000))
    with hub_server.serve(tmp_path / "cache", monkeypatch) as server:
        server.repositories["google/tiny"] = {"main": repository, "refs/pr/2": repository}
        yield server


def refused(name, match, error=MissingFile):
    with pytest.raises(error, match=match) as caught:
        hub.list_files(hub.parse_hub_name(name))
    assert isinstance(caught.value, UserError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("google/flan-t5-small", ("google/flan-t5-small", "main")),
        ("google/flan-t5-small@refs/pr/2", ("google/flan-t5-small", "refs/pr/2")),
        ("google/umt5.x_1@v1.0", ("google/umt5.x_1", "v1.0")),
        ("t5-small", ("t5-small", "main")),
        ("google/flan-t5-small/", ("google/flan-t5-small", "main")),
        (pathlib.PurePath("google/flan-t5-small"), ("google/flan-t5-small", "main")),
    ],
)
def test_names_of_the_hub(text, want, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = hub.parse_hub_name(text)
    assert (name.repository, name.revision) == want


@pytest.mark.parametrize(
    "text",
    [
        "", "student", "/path/google/x", "a/b/c", "./google/x", "../x", "google/x@",
        "google/x@../y", "google/x@a b", "~/x", "gs://bucket/x", "google\\x", "google/x\n", "-o/x",
    ],
)  # fmt: skip
def test_other_texts_are_paths(text):
    assert hub.parse_hub_name(text) is None


def test_a_local_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("google/tiny")
    assert hub.parse_hub_name("google/tiny") is None
    assert hub.parse_hub_name("google/typo") is None  # is not looked up: the folder google exists
    assert hub.parse_hub_name("google/typo@main") == hub.HubName("google/typo")
    for path in ("t5-small", "google/tiny@v1"):
        os.makedirs(path)
        assert hub.parse_hub_name(path) is None
    assert "a folder google it is not looked up on the Hugging Face Hub" in hub.remark(
        "google/typo"
    )
    assert "nor is it the name of a model on the Hugging Face Hub" in hub.remark("/no/such/run")


def test_only_what_is_asked_for_is_downloaded_once(server, capsys):
    name = hub.parse_hub_name("google/tiny@refs/pr/2")
    listing = hub.list_files(name)
    assert listing.sizes == {"config.json": 2, "weights.bin": 5000}
    folder = hub.download(name, listing, ["weights.bin"])
    assert (folder / "weights.bin").read_bytes() == bytes(5000)
    assert folder.name == listing.commit and hub.is_commit(folder.name)
    assert "downloading google/tiny@" in capsys.readouterr().err
    hub.download(name, listing, ["weights.bin"])
    assert server.files == ["weights.bin"] and capsys.readouterr().err == ""
    assert hub.cached_folder(name, "weights.bin") == folder
    assert hub.cached_folder(name, "config.json") is None


def test_refusals_of_the_hub(server):
    neither = "there is no such folder, and the Hugging Face Hub"
    refused("google/no", f"^google/no: {neither} has no model of this name that you may read")
    refused("google/tiny@v2", "google/tiny has no revision 'v2' on the Hugging Face Hub")
    for status, code, match in [
        (401, "RepoNotFound", "has no model of this name that you may read"),
        (403, "GatedRepo", "only to users who have accepted its conditions.*hf auth login"),
        (403, "", r"refuses access \(403\): log in with `hf auth login`"),
    ]:
        server.refusals["google/other"] = (status, code)
        refused("google/other", f"{neither}.*{match}")
    server.refusals["google/other"] = (503, "")
    refused("google/other", r"answered with an error \(503\)", hub.Unreachable)


def test_offline_is_one_quick_line(tmp_path, monkeypatch):
    hub_server.point_to(hub_server.closed_port(), tmp_path / "cache", monkeypatch)
    begin = time.monotonic()
    refused("google/tiny@main", "cannot be reached .*refused.*: connect this", hub.Unreachable)
    assert time.monotonic() - begin < 5  # huggingface_hub's own retries take 24 s
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("google/tiny@main", "HF_HUB_OFFLINE is set", hub.Unreachable)


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("https://huggingface.co/google/t5", "google/t5"),
        ("https://huggingface.co/google/t5/tree/v1", "google/t5@v1"),
        ("hf://google/t5", "google/t5"),
        ("s3://bucket/a/b", ""),
    ],
)
def test_an_address_is_neither_a_name_nor_a_path(text, example):
    for read in (formats.open_checkpoint, load_hf, vocabularies.t5):
        with pytest.raises(
            MissingFile, match="is an address: give a path, or the name of"
        ) as error:
            read(text)
        assert str(error.value).endswith(f"e.g. {example}" if example else "@REVISION")


def test_answers_and_settings_that_cannot_be_read_are_one_line(server, monkeypatch):
    server.refusals["google/tiny"] = (200, "")  # e.g. the login page of a hotel
    refused("google/tiny", "no answer of the Hugging Face Hub can be read", hub.Unreachable)
    monkeypatch.setenv("HF_TOKEN", "hf_secr\u00e9t")
    refused("google/tiny", "token of the Hugging Face Hub .HF_TOKEN.* correct it$", hub.Unreachable)
