"""Finds out in seconds whether TFDS can provide a data set, instead of its minutes of retries."""

from __future__ import annotations

import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from gkd.errors import MissingFile

_BUCKET = "https://storage.googleapis.com/tfds-data"  # where TFDS keeps some prepared data sets
_SECONDS = 8
PAGE = "docs/data_and_checkpoints.md#data-sets-of-tfds"


def check_available(name: str) -> None:
    """Checks that a data set is prepared on this machine, or that it can be downloaded.

    Args:
      name: data set, configuration and version, e.g. `xsum:1.1.0`.

    Raises:
      FileNotFoundError: TFDS has no such data set, or it is not prepared and its source sends no
        answer within 8 seconds.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
    except Exception as error:  # TFDS raises half a dozen types
        raise MissingFile(f"TFDS has no data set {name} ({first_line(error)})") from error
    if builder.is_prepared():
        return
    url = _source(builder)
    if not _answers(url):
        raise MissingFile(
            f"TFDS has no {name} here (not prepared in {builder.data_path}, and "
            f"{urllib.parse.urlsplit(url).netloc} does not answer): give local files, FILES="
            "{'train': 'train.jsonl', …}, or prepare it with `tfds build "
            f"{name.split(':')[0]}` where there is a network; see {PAGE}"
        )


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _source(builder: Any) -> str:
    """An address from which the data set would be downloaded."""
    try:
        return next(iter(builder.url_infos), _BUCKET)
    except TypeError:  # no addresses are registered
        return _BUCKET


def _answers(url: str) -> bool:
    """Returns whether there is a server; any answer of it will do."""
    answers = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS)
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, ValueError):
            return
        answers.append(True)

    # Neither the look-up of the name nor a proxy keeps to the time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return bool(answers)
