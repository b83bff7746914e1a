"""Counts the programs that XLA compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts compilations and recompilations of this process: the latter cost minutes on a pod."""

    def __init__(self) -> None:
        """Starts counting."""
        self._count, self._seconds, self._again = 0, 0.0, 0
        self._seen: set[str] = set()
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _compiled(self, event: str, seconds: float, **_) -> None:
        if event == _COMPILED:
            self._count += 1
            self._seconds += seconds

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Attributes compilations inside to a program; from its second run on they are repeats.

        Args:
          name: name of the program.
        """
        before = self._count
        yield
        if name in self._seen:
            self._again += self._count - before
        self._seen.add(name)

    def summary(self) -> dict[str, int | float]:
        """Returns the programs compiled (or read from the cache), seconds, and recompilations."""
        return {
            "compilations": self._count,
            "compilation_seconds": round(self._seconds, 1),
            "recompilations": self._again,
        }
