"""Turns SIGTERM, SIGHUP and Ctrl-C into a request to stop, so that a run saves before it ends."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

EXIT_STOPPED = 75  # EX_TEMPFAIL: "try again later". 143 would look like a kill without a save.
_SAME_REQUEST_SECONDS = 2.0
EXIT_LOST = 76  # another process of the job was lost; start again
EXIT_INTERRUPTED = 130  # the shells' exit code after Ctrl-C


def stop_signals() -> tuple[signal.Signals, ...]:
    """Lists the signals that request a stop: SIGTERM, SIGINT, and SIGHUP unless under nohup."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return tuple(numbers)


@contextlib.contextmanager
def quick_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end the process immediately, with one line, while a block imports modules.

    There is nothing to save at that time. A KeyboardInterrupt would be raised inside some module
    and printed with 60 lines, or be caught by it.
    """
    ordinary = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ordinary or threading.current_thread() is not threading.main_thread():
        yield
        return

    stderr = os.dup(2)  # TensorFlow is imported with messages turned off

    def end(number: int, frame: types.FrameType | None) -> None:
        os.write(stderr, b"gkd: interrupted\n")
        os._exit(EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(stderr)


class Stopped(Exception):
    """Raised by a verb that saved and ended early on request.

    The command line prints the message and exits with EXIT_STOPPED; the same command continues.
    """


def end_with_parent() -> Callable[[], None]:
    """Builds a function that makes a child end by SIGTERM when its parent has ended.

    Returns:
      The function, to be called in the child, possibly between fork and exec; it has an effect on
      Linux only. A child whose parent has ended already exits immediately.
    """
    if sys.platform != "linux":
        return lambda: None
    libc, parent = ctypes.CDLL(None), os.getpid()
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)

    def ask() -> None:
        libc.prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getpid() != parent and os.getppid() != parent:
            os._exit(EXIT_STOPPED)

    return ask


class StopRequest:
    """Handles SIGTERM, SIGHUP and SIGINT while a `with` block runs in the main thread.

    The first signal only sets `requested`; a second one has its default effect (SIGINT raises
    KeyboardInterrupt, the others end the process), for a run that hangs. A signal shortly after the
    first belongs to the same request: a terminal's Ctrl-C reaches a process directly, and as
    SIGTERM from its launcher.

    Example:
      with StopRequest() as stop:
          for step in range(first, last):
              ...
              if stop.requested:
                  save(step)
                  raise Stopped(f"{stop.signal_name} at step {step}; saved")
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a signal was received."""
        return self._signal is not None

    @property
    def signal_name(self) -> str:
        """Name of the received signal, "" before."""
        return self._signal.name if self._signal else ""

    def __enter__(self) -> "StopRequest":
        for number in stop_signals():
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        again = self._signal is not None
        self._restore(signal.Signals(number))  # so that the next one acts at once
        if again and time.monotonic() - self._since > _SAME_REQUEST_SECONDS:
            os.kill(os.getpid(), number)
        elif not again:
            self._signal, self._since = signal.Signals(number), time.monotonic()

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers or list(self._previous):
            handler = self._previous.pop(number)
            signal.signal(number, handler or signal.SIG_DFL)  # None: set outside Python
