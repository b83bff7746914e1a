"""The names of a run's steps, and the step that every verb reads where none is named."""

from __future__ import annotations

from gkd.errors import InvalidValue

BEST_OR_NEWEST = "best_or_newest"  # the best by the run's own best_metric, where it has one
BEST, NEWEST = "best", "newest"
NAMES = (BEST_OR_NEWEST, BEST, NEWEST)


def parse_step(text: int | str | None) -> int | str | None:
    """Checks a step as a user gives it.

    Args:
      text: a name, a number or its digits; None is the newest.

    Returns:
      The name, or the number.

    Raises:
      ValueError: it is neither.
    """
    if text is None or text in NAMES:
        return text
    if isinstance(text, str) and text.isascii() and text.isdigit():
        return int(text)
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    raise InvalidValue(f"step {text!r} is no step: use {', '.join(NAMES)} or a number")
