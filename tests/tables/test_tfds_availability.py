"""TFDS without a network: one line within seconds, and no word where the data set is prepared."""

import dataclasses
import socket
import time

import pytest
import tensorflow_datasets as tfds

from gkd.tables import tfds_availability
from gkd.tables.tfds_availability import check_available


@dataclasses.dataclass
class Builder:
    """As much of a TFDS builder as is asked for."""

    url_infos: dict | None
    prepared: bool = False
    data_path: str = "/data/xsum/1.1.0"

    def is_prepared(self):
        return self.prepared


@pytest.fixture
def server():
    """The address of a server on this machine that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/split.json"


def test_a_silent_or_absent_server_is_one_line_within_seconds(monkeypatch, server):
    monkeypatch.setattr(tfds_availability, "_SECONDS", 0.3)
    for url in (server, "http://127.0.0.1:9/split.json"):
        monkeypatch.setattr(tfds, "builder", lambda name, url=url: Builder({url: None}))
        start = time.monotonic()
        with pytest.raises(FileNotFoundError) as error:
            check_available("xsum:1.1.0")
        assert time.monotonic() - start < 3
        for part in (
            "TFDS has no xsum:1.1.0 here (not prepared in /data/xsum/1.1.0, and 127.0.0.1:",
            "`tfds build xsum`", "FILES=", "docs/data_and_checkpoints.md#data-sets-of-tfds",
        ):  # fmt: skip
            assert part in str(error.value)
        assert "\n" not in str(error.value)


def test_a_name_look_up_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(tfds_availability, "_SECONDS", 0.2)
    monkeypatch.setattr(tfds_availability.urllib.request, "urlopen", lambda *_, **__: time.sleep(4))
    monkeypatch.setattr(tfds, "builder", lambda name: Builder({"http://host/a": None}))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="and host does not answer"):
        check_available("xsum:1.1.0")
    assert time.monotonic() - start < 2


def test_what_is_prepared_or_can_be_downloaded_is_left_to_tfds(monkeypatch, server):
    asked = []
    monkeypatch.setattr(
        tfds_availability.urllib.request, "urlopen", lambda ask, **_: asked.append(ask.full_url)
    )
    monkeypatch.setattr(tfds, "builder", lambda name: Builder({server: None}, prepared=True))
    check_available("xsum:1.1.0")
    assert asked == []
    for known, url in (({server: None}, server), (None, "https://storage.googleapis.com")):
        monkeypatch.setattr(tfds, "builder", lambda name, known=known: Builder(known))
        check_available("xsum:1.1.0")
        assert asked.pop().startswith(url)


def test_an_unknown_data_set_is_one_line():
    with pytest.raises(FileNotFoundError, match="TFDS has no data set no_such_set:1.0.0") as error:
        check_available("no_such_set:1.0.0")
    assert "\n" not in str(error.value)
