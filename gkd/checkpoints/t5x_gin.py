"""Parses the architecture in a T5X config.gin, without importing or calling anything."""

from __future__ import annotations

import logging
import tokenize
from collections.abc import Mapping
from typing import Any

from gin import config_parser

from gkd.errors import InvalidFile
from gkd.files.json_files import check_value, shown
from gkd.models.t5 import T5_FIELDS

_CONFIG = "T5Config"
_DROPOUT_RATE = 0.1  # T5X's default, used if T5Config is bound without a rate
_LOG = logging.getLogger(__name__)
_LONGEST = 1 << 22
_MOST_MACROS = 32  # greatest length of a chain of macros that name one another


class _Unknown:
    """A value that only T5X itself could compute: a reference, or an unbound macro."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Macro(_Unknown):
    """%NAME."""


class _References(config_parser.ParserDelegate):
    """Replaces @reference and %MACRO by placeholders; gin's parser requires this base class."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        """Returns the placeholder of @name or @name()."""
        return _Unknown(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        """Returns the placeholder of %name."""
        return _Macro(f"%{macro_name}")


def read_t5_config(text: str, where: Any) -> dict[str, Any]:
    """Reads the arguments that a gin file binds to T5X's T5Config, with macros replaced.

    Args:
      text: text of the file.
      where: path of the file, for messages.

    Returns:
      The value of the last binding by name. References and unbound macros are placeholders that
      print as in the file.

    Raises:
      ValueError: the text is not valid gin.

    >>> text = "WIDTH = 64\\nnetwork.T5Config.emb_dim = %WIDTH\\nnetwork.T5Config.dtype = %DTYPE"
    >>> read_t5_config(text, "config.gin")
    {'emb_dim': 64, 'dtype': %DTYPE}
    """
    if len(text) > _LONGEST:
        raise InvalidFile(f"{where} has {len(text)} characters: no config.gin is that long")
    arguments: dict[str, Any] = {}
    macros: dict[str, Any] = {}
    try:
        for statement in config_parser.ConfigParser(text, _References()):
            if not isinstance(statement, config_parser.BindingStatement):
                continue
            selector, name = statement.selector, statement.arg_name
            if not name:
                macros[selector] = statement.value
            elif selector in ("gin.macro", "macro") and name == "value":
                macros[statement.scope] = statement.value
            elif selector.endswith(_CONFIG):
                arguments[name] = statement.value
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidFile(f"{where} is no gin that can be read: {reason}") from error
    return {name: _resolved(value, macros) for name, value in arguments.items()}


def activations(bound: Mapping[str, Any], gated: bool, where: Any) -> tuple[str, ...]:
    """Determines the activations of the MLPs: the bound ones, else gelu, or relu without a gate.

    Args:
      bound: bindings of `read_t5_config`.
      gated: true if the checkpoint's MLPs have a gate.
      where: path of the file, for messages.

    Returns:
      Names of the activations: two for a gated MLP, else one.

    Raises:
      ValueError: the bound value is not one name, or two names for a gated MLP.
    """
    value = bound.get("mlp_activations")
    if value is None:
        return ("gelu", "linear") if gated else ("relu",)
    names = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
    if not names or len(value) != 1 + gated:
        raise InvalidFile(
            f"{where} has mlp_activations = {shown(value)}, wanted "
            f"{'two names, the MLPs are gated' if gated else 'one name'}: give the architecture"
        )
    return tuple(value)


def dropout_rate(bound: Mapping[str, Any], where: Any) -> float:
    """Determines the dropout rate that T5X trained with; 0 if nothing is bound.

    Args:
      bound: bindings of `read_t5_config`.
      where: path of the file, for messages.

    Raises:
      ValueError: the bound value is not in [0, 1).
    """
    value = bound.get("dropout_rate", _DROPOUT_RATE if bound else 0.0)
    if isinstance(value, _Unknown):
        text = "%s has dropout_rate = %r, which it does not bind: %s is used"
        _LOG.warning(text, where, value, _DROPOUT_RATE)
        return _DROPOUT_RATE
    check_value(value, T5_FIELDS["dropout_rate"], f"{where}: dropout_rate")
    return float(value)


def _resolved(value: Any, macros: dict[str, Any], depth: int = 0) -> Any:
    """Replaces macros in a value by their values, as far as the file binds them."""
    if depth > _MOST_MACROS:
        return value
    if isinstance(value, _Macro) and value.text[1:] in macros:
        return _resolved(macros[value.text[1:]], macros, depth + 1)
    if isinstance(value, tuple | list):
        return type(value)(_resolved(item, macros, depth + 1) for item in value)
    return value
