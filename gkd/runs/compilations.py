"""Counts the programs that XLA compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """What this process compiles, and what again: changing shapes cost minutes on a pod."""

    def __init__(self) -> None:
        """Starts to count."""
        self._count, self._seconds, self._again = 0, 0.0, 0
        self._seen: set[str] = set()
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def _compiled(self, event: str, seconds: float, **_) -> None:
        if event == _COMPILED:
            self._count += 1
            self._seconds += seconds

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What is compiled inside belongs to `name`, which needs nothing more the second time."""
        before = self._count
        yield
        if name in self._seen:
            self._again += self._count - before
        self._seen.add(name)

    def seen(self, name: str) -> bool:
        """Whether `name` has run."""
        return name in self._seen

    def summary(self) -> dict[str, int | float]:
        """Programs compiled (or read from the disk's cache), the seconds, and how many again."""
        return {
            "compilations": self._count,
            "compilation_seconds": round(self._seconds, 1),
            "recompilations": self._again,
        }
