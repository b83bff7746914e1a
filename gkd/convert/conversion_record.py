"""The record beside a converted checkpoint: the arguments, and the content it was made from."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gkd.errors import InvalidFile
from gkd.files.atomic_files import write_json
from gkd.files.json_files import Field, check_fields, read_json
from gkd.runs import setting_changes

CONVERSION_FILE = "conversion.json"
_FIELDS = {
    "arguments": Field(kinds=(dict,), required=True),
    "source": Field(kinds=(str,), required=True),
    "digest": Field(kinds=(str,), required=True, none=True),
}


def write_record(
    target: str | os.PathLike[str], arguments: Mapping[str, Any], source: str, digest: str | None
) -> None:
    """Records a conversion in the folder that it has written.

    Args:
      target: path of the folder.
      arguments: the call's arguments by name, but for the target.
      source: name by which the source is opened again: of a run its step folder.
      digest: identity of that step, see `hashes.digest_of`; None for other formats.

    Raises:
      OSError: the file could not be written.
    """
    record = {"arguments": dict(arguments), "source": source, "digest": digest}
    write_json(pathlib.Path(target) / CONVERSION_FILE, record)


def conversion_changes(target: str | os.PathLike[str], arguments: Mapping[str, Any]) -> list[str]:
    """Lists the differences of a conversion that was made and one that is asked for.

    Args:
      target: path of the converted folder. One without a record, as of earlier versions, differs
        in nothing.
      arguments: the arguments of the call that is asked for.

    Returns:
      One text per difference: "keep_decoder_layers '0' → '0,3'".
    """
    path = pathlib.Path(target) / CONVERSION_FILE
    try:
        record = read_json(path, dict)
        check_fields(record, _FIELDS, path)
    except (OSError, InvalidFile):
        return []
    changes = setting_changes.of_arguments(record["arguments"], arguments)
    sources = {"SOURCE": (record["source"], record["digest"])}
    return [*changes, *setting_changes.of_checkpoints(sources)]
