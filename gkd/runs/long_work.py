"""Reports long work on standard error: its start, its time so far every 30 seconds, its end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from gkd.runs.progress import announce, duration

EVERY_SECONDS = 30


@contextlib.contextmanager
def long_work(
    what: str, say: Callable[[str], None] = announce, every: float | int = EVERY_SECONDS
) -> Iterator[None]:
    """Announces work that may take minutes, and repeats it with the time that it has taken so far.

    Args:
      what: the work, e.g. "compiling step".
      say: function that shows a line.
      every: seconds between lines.

    >>> with long_work("compiling step", say=print):
    ...     pass
    compiling step …
    compiling step: 0s
    """
    begin, ended = time.monotonic(), threading.Event()

    def repeat():
        while not ended.wait(every):
            say(f"{what}: {duration(time.monotonic() - begin)} so far …")

    say(f"{what} …")
    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    say(f"{what}: {duration(time.monotonic() - begin)}")
