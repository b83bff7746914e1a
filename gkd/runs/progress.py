"""Shows the progress of a loop: a live bar on a terminal, or a plain line every few seconds."""

import collections
import sys
import time
from collections.abc import Callable
from typing import Any

import rich.console
import rich.progress

from gkd.parallel import processes


class Rates:
    """Steps and tokens per second over a sliding window, which smooths them.

    The first step compiles and evaluations pause the loop, so that an average from the start would
    not be the current speed. After a pause the rates before it hold until two steps have ended.
    """

    def __init__(self, clock: Callable[[], float], window_seconds: float | int = 120) -> None:
        """Starts with an empty window.

        Args:
          clock: function that returns seconds.
          window_seconds: length of the window in seconds.
        """
        self._clock = clock
        self._window = window_seconds
        self._points: collections.deque[tuple[float, int, int]] = collections.deque()
        self._tokens = 0
        self._before: tuple[float, float] | None = None  # the pause

    def add(self, step: int, tokens: int) -> None:
        """Records the end of a step.

        Args:
          step: number of the step.
          tokens: number of tokens that it processed.
        """
        self._tokens += tokens
        now = self._clock()
        self._points.append((now, step, self._tokens))
        while len(self._points) > 2 and now - self._points[0][0] > self._window:
            self._points.popleft()

    def skip(self) -> None:
        """Empties the window, after a pause in training."""
        self._before = self.per_second()
        self._points.clear()

    def per_second(self) -> tuple[float, float] | None:
        """Returns steps and tokens per second; None before the run's second step has ended."""
        if len(self._points) < 2:
            return self._before
        (start, first_step, first_tokens), (end, step, tokens) = self._points[0], self._points[-1]
        seconds = max(end - start, 1e-9)
        return (step - first_step) / seconds, (tokens - first_tokens) / seconds


class Progress:
    """The progress of a loop over steps.

    Example:
      with Progress("train", total_steps=1000, start_step=restored) as progress:
          for step in range(restored, 1000):
              ...
              progress.update(step + 1, tokens=4096, loss=1.25)
    """

    def __init__(
        self,
        name: str,
        total_steps: int,
        start_step: int = 0,
        line_seconds: float | int = 10,
        console: rich.console.Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the display; the bar appears with the `with` block.

        Args:
          name: name of the loop, e.g. "train".
          total_steps: the step at which the loop ends.
          start_step: number of steps done by earlier launches.
          line_seconds: seconds between plain lines if the console is no terminal.
          console: console to write to; by default standard error.
          clock: function that returns seconds.
        """
        self._name, self._total, self._step = name, total_steps, start_step
        self._line_seconds = line_seconds
        quiet = not processes.is_primary_process()
        self._console = console or rich.console.Console(stderr=True, quiet=quiet)
        self._clock = clock
        self._rates = Rates(clock)
        self._last_line = clock()
        self._text = ""
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=self._console,
            )
            self._bar.add_task(self._name, total=self._total, completed=self._step, text="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._text:
            self._print_line()

    def update(self, step: int, tokens: int = 0, note: str = "", **values: Any) -> None:
        """Reports the end of a step.

        Args:
          step: number of steps done so far.
          tokens: number of tokens that this step processed.
          note: text to show after the rates.
          **values: numbers to show, e.g. loss=1.25; 0-d arrays too (which waits for them).
        """
        self._step = step
        self._rates.add(step, tokens)
        self._text = self._describe(values, note)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, text=self._text)
        elif self._clock() - self._last_line >= self._line_seconds:
            self._print_line()

    def pause_ended(self) -> None:
        """Restarts the rates after a pause, such as an evaluation."""
        self._rates.skip()

    def print(self, *objects: Any) -> None:
        """Prints text or rich tables above the bar."""
        self._console.print(*objects, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _describe(self, values: dict[str, Any], note: str) -> str:
        parts = [f"{self._step}/{self._total}"]
        parts += [f"{name} {float(value):.4g}" for name, value in values.items()]
        rates = self._rates.per_second()
        if rates is not None:
            steps, tokens = rates
            parts.append(f"{steps:.3g} steps/s")
            if tokens:
                parts.append(f"{tokens:,.0f} tokens/s")
            if steps and self._step < self._total:
                parts.append(f"ETA {duration((self._total - self._step) / steps)}")
        return "  ".join([*parts, note]).rstrip()

    def _print_line(self) -> None:
        """Prints the current text as a plain line, once."""
        self._console.print(
            f"{self._name}  {self._text}", markup=False, highlight=False, soft_wrap=True
        )
        self._last_line, self._text = self._clock(), ""


def announce(text: str) -> None:
    """Prints one line on standard error, in the primary process of the job.

    Args:
      text: name of the work that begins now, e.g. 'loading TEACHER google/flan-t5-xl'.
    """
    if processes.is_primary_process():
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float | int) -> str:
    """Renders a duration.

    Args:
      seconds: duration in seconds.

    >>> duration(8), duration(125), duration(11220)
    ('8s', '2m05s', '3h07m')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
