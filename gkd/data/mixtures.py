"""Mix the rows of several tasks in given rates, in an order that is a pure function of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int

from gkd.data.permutation import permutation
from gkd.errors import InvalidValue
from gkd.vocabularies.tensorflow_host import seqio, tf

_ROWS_AT_ONCE = 1024
Texts = dict[str, np.ndarray]  # every feature: bytes [rows]; empty: bool [rows]


def proportional_rates(
    sizes: Sequence[int], maximum: int | None = None, temperature: float | int = 1.0
) -> list[float | int]:
    """Rates by number of rows: min(rows, maximum)^(1/temperature).

    Raffel et al., "Exploring the Limits of Transfer Learning" (2020), section 3.5.2; the same as
    seqio.mixing_rate_num_examples.

    Args:
      sizes: rows of each component.
      maximum: the cap K; None is none.
      temperature: 1 is proportional, a large one equal rates.
    """
    return [min(size, maximum or size) ** (1 / temperature) for size in sizes]


def row_counts(
    sizes: Sequence[int], rates: Sequence[float | int], rows: int | None = None
) -> tuple[int, ...]:
    """How many rows of each component one epoch of the mixture has.

    Args:
      sizes: rows of each component.
      rates: relative rates of the components, positive; only their ratios matter.
      rows: rows of the epoch. By default the fewest in which every row of every component comes at
        least once: components whose rate is above their share of rows are repeated.

    Returns:
      Counts whose sum is the epoch's rows and that differ from the exact rates by less than one row
      (the largest remainders are rounded up, the first first).
    """
    exact = [Fraction(str(rate)) for rate in rates]  # as written: 0.1 is a tenth
    shares = [rate / sum(exact) for rate in exact]
    if rows is None:
        rows = max(math.ceil(size / share) for size, share in zip(sizes, shares, strict=True))
    wanted = [rows * share for share in shares]
    counts = [math.floor(count) for count in wanted]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    for i in by_remainder[: rows - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def interleaved(sizes: Sequence[int], counts: Sequence[int]) -> Int[np.ndarray, " rows"]:
    """The order of a mixture's rows: each component spread evenly over the whole.

    Row j of component i's `counts[i]` has its place at (j + ½) / counts[i]. A count above the
    component's size repeats all its rows; what is left is a choice spread over the component.

    Args:
      sizes: rows of each component.
      counts: rows wanted of each.

    Returns:
      int64 [sum of counts], indices into the components' rows laid end to end.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows, places = [np.zeros(0, np.int64)], [np.zeros(0)]
    for size, count, offset in zip(sizes, counts, offsets[:-1], strict=True):
        times, rest = divmod(count, size)
        some = np.sort(permutation(size, 0)[:rest])
        rows.append(offset + np.concatenate([np.tile(np.arange(size), times), some]))
        places.append((np.arange(count) + 0.5) / count)
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(rows)[order].astype(np.int64)


def read_texts(source: Any, texts: Callable[[Any], Any], split: str) -> Texts:
    """The texts of a whole split.

    Args:
      source: a seqio data source.
      texts: function of a batch of its rows to the text of every feature, and `empty`.
      split: the name of one of its splits.

    Raises:
      ValueError: if the split has no rows.
    """
    dataset = source.get_dataset(split, shuffle=False).batch(_ROWS_AT_ONCE).map(texts)
    blocks = list(dataset.as_numpy_iterator())
    if not blocks:
        raise InvalidValue(f"split {split!r} of a mixture's component has no rows")
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def mixed_source(
    read: Callable[[str], Sequence[Texts]],
    splits: Iterable[str],
    counts_of: Callable[[str, Sequence[int]], Sequence[int]],
) -> Any:
    """A seqio data source of interleaved rows that are texts already.

    Args:
      read: function of a split's name to the texts of each component that has it.
      splits: names of the splits.
      counts_of: function of a split's name and its components' sizes to rows wanted of each.
    """

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # the order is the pipeline's business
        parts = read(split)
        sizes = [len(part["empty"]) for part in parts]
        order = interleaved(sizes, counts_of(split, sizes))
        columns = {
            name: tf.constant(np.concatenate([part[name] for part in parts])) for name in parts[0]
        }
        # Only indices are repeated, never the texts.
        rows = tf.data.Dataset.from_tensor_slices(order)
        return rows.map(lambda row: {name: tf.gather(columns[name], row) for name in columns})

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(splits))


def component_finder(components: Mapping[str, Any]) -> Callable[[str, str], str]:
    """Finds the component of a mixture that a row came from, by its texts.

    Args:
      components: tasks by their names.

    Returns:
      A function of a row's input and target text to a name. It reads splits until it has met the
      row, `train` last. A row that two components share belongs to the first.
    """
    known: dict[tuple[str, str], str] = {}
    splits = {split for task in components.values() for split in task.splits}
    unread = sorted(splits, key=lambda split: (split != "train", split))  # taken from the end

    def find(text: str, target: str) -> str:
        while (text, target) not in known and unread:
            split = unread.pop()
            for name, task in components.items():
                if split in task.splits:
                    part = read_texts(task.task.source, task.texts, split)
                    for row in zip(part["inputs"], part["targets"], strict=True):
                        known.setdefault((row[0].decode(), row[1].decode()), name)
        if (text, target) not in known:
            raise InvalidValue(f"no component of the mixture has the row {text[:60]!r}")
        return known[text, target]

    return find
