"""Rows of real lengths, and the few batches of an epoch that stand for all of its batches.

Every participant of `benchmarks.real_text` batches the same rows in its own way. It needs no
package but NumPy, as its workers run in the peers' environments.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

_USED_IDS = (3, 32000)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The lengths of rows in tokens, each through its EOS, and their greatest.

    Attributes:
      inputs, targets: int64 [rows].
      longest_input, longest_target: what batches of one length are padded to.
    """

    inputs: np.ndarray
    targets: np.ndarray
    longest_input: int
    longest_target: int

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each row, inputs plus targets."""
        return self.inputs + self.targets

    def save(self, path: pathlib.Path) -> None:
        """Writes the lengths as .npz."""
        np.savez(path, **dataclasses.asdict(self))

    def texts(self, vocabulary: int = _USED_IDS[1]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Makes up the tokens of all inputs and targets: random ids, then EOS.

        Args:
          vocabulary: ids below it are used.
        """
        generator = np.random.default_rng(0)

        def column(lengths):
            rows = [generator.integers(_USED_IDS[0], vocabulary, n).astype(np.int32)
                    for n in lengths]  # fmt: skip
            for row in rows:
                row[-1] = 1
            return rows

        return column(self.inputs), column(self.targets)


def load(path: str | pathlib.Path) -> Rows:
    """Reads what `Rows.save` wrote."""
    with np.load(path) as saved:
        return Rows(saved["inputs"], saved["targets"], *map(
            int, (saved["longest_input"], saved["longest_target"])))  # fmt: skip


def drawn(inputs: np.ndarray, targets: np.ndarray, longest: tuple[int, int], count: int) -> Rows:
    """Draws rows of a data set without replacement, and cuts them.

    Args:
      inputs, targets: tokens of all rows.
      longest: greatest length of inputs and targets.
      count: rows, or all that there are.
    """
    chosen = np.random.default_rng(0).permutation(len(inputs))[:count]
    cut = (np.minimum(x[chosen], n) for x, n in zip((inputs, targets), longest, strict=True))
    return Rows(*cut, *longest)


def xsum_like(count: int) -> Rows:
    """Draws rows as long as XSum's in T5's vocabulary, about: log-normal, independent, cut.

    Inputs have a mean of 450 and a standard deviation of 300 tokens and are cut at 1024, targets 28
    and 8, cut at 64. XSum's documents have 431 words and its summaries 23 in the mean (Narayan et
    al. 2018, arXiv 1808.08745).
    """
    generator = np.random.default_rng(0)
    inputs = log_normal(450, 300, count, generator)
    return drawn(inputs, log_normal(28, 8, count, generator), (1024, 64), count)


def log_normal(mean: float, deviation: float, count: int, generator) -> np.ndarray:
    """Draws log-normal lengths of a given mean and standard deviation, at least 2 tokens.

    >>> drawn = log_normal(450, 300, 100_000, np.random.default_rng(0))
    >>> int(drawn.mean().round(-1)), int(drawn.std().round(-1))
    (450, 300)
    """
    variance = np.log1p((deviation / mean) ** 2)
    drawn = generator.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    return np.maximum(2, np.round(drawn)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Batches of similar cost, one of which is run for all.

    Attributes:
      batch: index of the batch that is run.
      batches: their number.
      tokens: real tokens of a batch, the mean.
      positions: tokens and padding of a batch, the mean.
    """

    batch: int
    batches: int
    tokens: float
    positions: float


def strata(
    shapes: Sequence[tuple[int, ...]], steps: Sequence[int], tokens: Sequence[int], most: int
) -> list[Stratum]:
    """Divides an epoch's batches into strata: one for each shape, or equal parts by size.

    Args:
      shapes: (rows, input length, target length) of every batch.
      steps: the longest output of every batch.
      tokens: real tokens of every batch.
      most: strata at most.

    Returns:
      The strata; the batch that stands for one is in its middle by positions, then by `steps`.

    >>> strata([(1, 8, 2), (1, 4, 2), (1, 8, 2), (1, 8, 2)], [0] * 4, [9, 5, 7, 8], most=2)
    [Stratum(batch=1, batches=1, tokens=5.0, positions=6.0), \
Stratum(batch=2, batches=3, tokens=8.0, positions=10.0)]
    """
    positions = [rows * (source + target) for rows, source, target in shapes]
    keys = list(zip(positions, shapes, steps, strict=True))
    order = sorted(range(len(keys)), key=lambda batch: keys[batch])
    kinds = sorted(set(zip(positions, shapes, strict=True)))
    if len(kinds) <= most:
        groups = [[batch for batch in order if keys[batch][:2] == kind] for kind in kinds]
    else:
        groups = np.array_split(order, most)
    return [
        Stratum(
            batch=int(group[len(group) // 2]),
            batches=len(group),
            tokens=float(np.mean([tokens[batch] for batch in group])),
            positions=float(np.mean([positions[batch] for batch in group])),
        )
        for group in groups
    ]


def seconds_per_token(seconds: Sequence[float], of: Sequence[Stratum]) -> float:
    """Estimates an epoch's seconds per real token from the seconds of each stratum's batch.

    >>> seconds_per_token([1.0, 4.0], [Stratum(0, 3, 10.0, 12.0), Stratum(5, 1, 20.0, 30.0)])
    0.14
    """
    time = sum(one * stratum.batches for one, stratum in zip(seconds, of, strict=True))
    return time / sum(stratum.tokens * stratum.batches for stratum in of)


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Pads rows of tokens with 0 to a length, int32 [rows, length]."""
    result = np.zeros((len(rows), length), np.int32)
    for place, row in zip(result, rows, strict=True):
        place[: len(row)] = row
    return result
