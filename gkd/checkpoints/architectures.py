"""The architectures that a checkpoint can describe, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.errors import InvalidFile
from gkd.files.json_files import shown
from gkd.models.architecture import Architecture
from gkd.models.t5 import T5Config

# By the name under "architecture" in a description; T5's descriptions have none.
ARCHITECTURES = {"t5": T5Config, "decoder_only": DecoderConfig, "t5gemma": T5GemmaConfig}


def from_description(saved: Mapping[str, Any], where: str) -> Architecture:
    """Makes the architecture that a checkpoint describes, its layers not stacked.

    Args:
      saved: JSON from `Architecture.describe`.
      where: the file, for messages.

    Returns:
      The architecture.

    Raises:
      InvalidFile: an unknown architecture, or fields that it does not accept.
    """
    values = dict(saved)
    name = values.pop("architecture", "t5")
    if name not in ARCHITECTURES:
        raise InvalidFile(
            f"{where}: architecture {shown(name)} is not one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name].from_description(values, where)
