"""Mixes the rows of several tasks at given rates, in a reproducible order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int

from gkd.data.sources import permutation
from gkd.errors import InvalidValue
from gkd.vocabularies import vocabularies
from gkd.vocabularies.tensorflow_host import seqio, tf

_ROWS_AT_ONCE = 1024
Texts = dict[str, np.ndarray]  # every feature, REFERENCES: bytes [rows]; empty: bool [rows]


def check_components(
    tasks: Sequence[Any], rates: Sequence[float | int] | None, rows: int | None
) -> None:
    """Checks that tasks can be mixed.

    Args:
      tasks: the components (`TaskSpec`).
      rates: relative rates, one per component; None for proportional ones.
      rows: number of rows of a training epoch; None for all.

    Raises:
      ValueError: no tasks, two of one name, different vocabularies, or rates that do not fit.
    """
    names = [task.name for task in tasks]
    if not tasks or len(set(names)) != len(names):
        raise InvalidValue(f"a mixture needs tasks with different names, not {names}")
    for task in tasks[1:]:
        difference = vocabularies.same_vocabulary(tasks[0].vocabulary, task.vocabulary)
        if difference:
            raise InvalidValue(
                f"tasks {names[0]} and {task.name} differ in vocabulary: {difference}"
            )
        if task.chat != tasks[0].chat:
            raise InvalidValue(
                f"tasks {names[0]} and {task.name} differ in the form of their prompts: format the "
                "mixture (prompts.formatted), or all components alike"
            )
        features = [(one.features, one.teacher_input_length) for one in (tasks[0], task)]
        if features[0] != features[1]:
            raise InvalidValue(
                f"tasks {names[0]} and {task.name} differ in their features or the lengths of "
                "their teacher_inputs: give all components the same"
            )
    if rates is not None and (len(rates) != len(tasks) or min(rates) <= 0):
        raise InvalidValue(
            f"rates {list(rates)}: give a positive one to each of {', '.join(names)}"
        )
    if rows is not None and rows < 1:
        raise InvalidValue(f"rows={rows} of a mixture must be at least 1, or None")


def proportional_rates(
    sizes: Sequence[int], maximum: int | None = None, temperature: float | int = 1.0
) -> list[float | int]:
    """Computes mixing rates by number of rows: min(rows, maximum)^(1/temperature).

    Args:
      sizes: number of rows of each component.
      maximum: K, the limit on the number of rows; None is no limit.
      temperature: T; 1 gives proportional rates, a large value nearly equal ones.

    Returns:
      One relative rate per component.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning" (2020), section 3.5.2; equal
    to seqio.mixing_rate_num_examples.

    >>> proportional_rates([100, 10_000], maximum=2_500, temperature=2)
    [10.0, 50.0]
    """
    return [min(size, maximum or size) ** (1 / temperature) for size in sizes]


def row_counts(
    sizes: Sequence[int], rates: Sequence[float | int], rows: int | None = None
) -> tuple[int, ...]:
    """Computes the number of rows of each component in one epoch of the mixture.

    Args:
      sizes: number of rows of each component.
      rates: positive relative rates of the components; only their ratios matter.
      rows: number of rows of the epoch. By default the smallest for which every row of every
        component occurs at least once; components with a rate above their share are repeated.

    Returns:
      Counts whose sum is the number of rows of the epoch and that differ from the exact rates by
      less than one row (the largest remainders are rounded up, of equal ones the first).

    To see all 300 rows of the second component at a rate of 3/4, the first is repeated twice:

    >>> row_counts([50, 300], [1, 3])
    (100, 300)
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
    """Computes the order of a mixture's rows, with every component spread evenly over the whole.

    Row j of the `counts[i]` rows of component i is placed at (j + ½) / counts[i]. A count above the
    size of a component repeats all of its rows; the remainder is a random choice of them.

    Args:
      sizes: number of rows of each component.
      counts: number of rows to take of each component.

    Returns:
      int64 [sum of counts], indices into the concatenated rows of the components.

    >>> interleaved([2, 4], [2, 4]).tolist()
    [2, 0, 3, 4, 1, 5]
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
    """Reads the texts of a whole split.

    Args:
      source: a seqio data source.
      texts: function of a batch of its rows to the text of every feature, and `empty`.
      split: name of one of its splits.

    Returns:
      Bytes [rows] by feature, and `empty`, bool [rows].

    Raises:
      ValueError: the split has no rows.
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
    """Builds a seqio data source of interleaved rows of texts.

    Args:
      read: function of the name of a split to the texts of each component that has it.
      splits: names of the splits.
      counts_of: function of the name of a split and the sizes of its components to the number of
        rows to take of each.
    """

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # the pipeline determines the order
        components = read(split)
        sizes = [len(component["empty"]) for component in components]
        sized = list(zip(components, sizes, strict=True))
        order = interleaved(sizes, counts_of(split, sizes))
        names = dict.fromkeys(name for component in components for name in component)
        columns = {
            name: tf.constant(
                np.concatenate(
                    # Only some components may have rows of several references.
                    [part.get(name, np.full(n, b"", object)) for part, n in sized]
                )
            )
            for name in names
        }
        # Only indices are repeated, never the texts.
        rows = tf.data.Dataset.from_tensor_slices(order)
        return rows.map(lambda row: {name: tf.gather(columns[name], row) for name in columns})

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(splits))


def component_finder(components: Mapping[str, Any]) -> Callable[[str, str], str]:
    """Builds a function that finds the component of a mixture that contains a row.

    Args:
      components: tasks by name.

    Returns:
      A function of a row's input and target text to the name of the component. It reads splits
      until one contains the row, `train` last. A row of two components belongs to the first.
    """
    known: dict[tuple[str, str], str] = {}
    splits = {split for task in components.values() for split in task.splits}
    unread = sorted(splits, key=lambda split: (split != "train", split))  # taken from the end

    def find(text: str, target: str) -> str:
        while (text, target) not in known and unread:
            split = unread.pop()
            for name, task in components.items():
                if split in task.splits:
                    rows = read_texts(task.task.source, task.texts, split)
                    for row in zip(rows["inputs"], rows["targets"], strict=True):
                        known.setdefault((row[0].decode(), row[1].decode()), name)
        if (text, target) not in known:
            raise InvalidValue(f"no component of the mixture has the row {text[:60]!r}")
        return known[text, target]

    return find
