"""Chooses the module that translates a family of transformers, by its model type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkd.errors import InvalidFile
from gkd.files.json_files import shown
from gkd.hugging_face import decoder_only, t5, t5gemma
from gkd.models.architecture import Architecture

_MODULES = (t5, decoder_only, t5gemma)


def of_model_type(raw: Mapping[str, Any], where: Any) -> Any:
    """Returns the module for the family of a config.json: `read`, `prepare`, `write_config`, ….

    Args:
      raw: the JSON.
      where: path of the file, for messages.

    Raises:
      ValueError: no module has the model type.
    """
    named = raw.get("model_type")
    for module in _MODULES:
        if named in module.MODEL_TYPES:
            return module
    known = ", ".join(sorted(repr(name) for module in _MODULES for name in module.MODEL_TYPES))
    raise InvalidFile(f"{where}: model_type is {shown(named)}: choose one of {known}")


def of_architecture(config: Architecture) -> Any:
    """Returns the module for an architecture."""
    return next(module for module in _MODULES if isinstance(config, module.ARCHITECTURE))
