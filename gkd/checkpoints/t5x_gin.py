"""The architecture that a T5X config.gin describes: parsed by gin, nothing imported or called."""

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
_DROPOUT_RATE = 0.1  # of T5X's T5Config, where it is bound without one
_LOG = logging.getLogger(__name__)
_LONGEST = 1 << 22
_MOST_MACROS = 32  # one that names another, that names another …


class _Unknown:
    """A value that only running T5X would give: a reference, or a macro that has none here."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Macro(_Unknown):
    """%NAME."""


class _References(config_parser.ParserDelegate):
    """gin's parser asks what to put in the place of @reference and %MACRO; its base is a class."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        """@name or @name()."""
        return _Unknown(f"@{scoped_configurable_name}{'()' if evaluate else ''}")

    def macro(self, macro_name):
        """%name."""
        return _Macro(f"%{macro_name}")


def read_t5_config(text: str, where: Any) -> dict[str, Any]:
    """Reads the arguments that a gin file binds to T5X's T5Config, its macros replaced.

    Args:
      text: the file's text.
      where: the file, for messages.

    Returns:
      Name -> value of the last binding. A value that the text does not give, a reference or an
      unbound macro, is an object that prints as it is written.

    Raises:
      ValueError: the text is no gin, in one line.
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
    """The MLPs' activations: those bound, else gelu, or relu where there is no gate.

    Args:
      bound: from `read_t5_config`.
      gated: whether the checkpoint's MLPs have a gate.
      where: the file, for messages.

    Raises:
      ValueError: they are bound to something else than one name, or two for a gated MLP.
    """
    value = bound.get("mlp_activations")
    if value is None:
        return ("gelu", "linear") if gated else ("relu",)
    names = isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)
    if not names or len(value) != 1 + gated:
        raise InvalidFile(
            f"{where} says mlp_activations = {shown(value)}, wanted "
            f"{'two names, the MLPs are gated' if gated else 'one name'}: give the architecture"
        )
    return tuple(value)


def dropout_rate(bound: Mapping[str, Any], where: Any) -> float:
    """The dropout rate that T5X trained with; 0 where nothing is known of the model.

    Args:
      bound: from `read_t5_config`.
      where: the file, for messages.

    Raises:
      ValueError: it is bound to something else than a share.
    """
    value = bound.get("dropout_rate", _DROPOUT_RATE if bound else 0.0)
    if isinstance(value, _Unknown):
        text = "%s says dropout_rate = %r, which it does not bind: %s is used"
        _LOG.warning(text, where, value, _DROPOUT_RATE)
        return _DROPOUT_RATE
    check_value(value, T5_FIELDS["dropout_rate"], f"{where}: dropout_rate")
    return float(value)


def _resolved(value: Any, macros: dict[str, Any], depth: int = 0) -> Any:
    """`value` with the values of macros in their places, as far as the file gives them."""
    if depth > _MOST_MACROS:
        return value
    if isinstance(value, _Macro) and value.text[1:] in macros:
        return _resolved(macros[value.text[1:]], macros, depth + 1)
    if isinstance(value, tuple | list):
        return type(value)(_resolved(each, macros, depth + 1) for each in value)
    return value
