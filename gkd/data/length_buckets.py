"""Lengths that rows are padded to: chosen from the data, and batches of rows that share them.

In training, examples come in the order of their epochs' permutations. As many of them as fill the
whole batches of an epoch are grouped by their lengths at a time, and the batches of every length
are then shuffled and spread evenly over the epoch: every row comes once an epoch, and the rows of a
batch follow from the seed and the batch's number alone.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gkd.data.sources import permutation
from gkd.errors import InvalidValue

# One more length must save this share of the padded tokens: each is a program to compile.
LEAST_SAVING = 0.03
# And a shape of a batch this share of the rows.
_LEAST_SHARE = 0.04
SHORT = 32  # inputs of so few tokens have one length
_MOST = 6  # lengths of inputs
_SHUFFLE = 0x6C656E  # separates the order of batches from that of rows


def multiple_of(longest: int) -> int:
    """Chooses the multiple that lengths are rounded up to: 16, 32 or, for long rows, 128.

    >>> multiple_of(192), multiple_of(1024), multiple_of(4096)
    (16, 32, 128)
    """
    return 16 if longest <= 256 else 32 if longest <= 1024 else 128


def chosen_lengths(lengths: np.ndarray, longest: int, most: int) -> tuple[int, ...]:
    """Chooses the lengths for which rows are padded least, `longest` being the last.

    Args:
      lengths: tokens of every row; longer rows than `longest` are cut.
      longest: greatest length of a row.
      most: lengths at most; fewer where another would save less than 3%.

    Returns:
      The lengths, ascending.

    Most rows have 20 tokens, some 100; a length for these saves padding too:

    >>> chosen_lengths(np.array([20] * 90 + [100] * 10), longest=128, most=4)
    (32, 112, 128)
    """
    step = multiple_of(longest)
    candidates = [*range(step, longest, step), longest]
    below = np.array([(np.minimum(lengths, longest) <= length).sum() for length in candidates])
    # cost[k][j]: tokens of the rows up to candidate j, padded to k + 1 lengths of which j is last.
    cost, before = [below * np.array(candidates)], []
    for _ in range(1, min(most, len(candidates))):
        added = (below[None, :] - below[:, None]) * np.array(candidates)[None, :]
        ways = np.where(
            np.arange(len(candidates))[:, None] < np.arange(len(candidates)),
            cost[-1][:, None] + added,
            np.inf,
        )
        before.append(np.argmin(ways, axis=0))
        cost.append(ways.min(axis=0))
    totals = [costs[-1] for costs in cost]
    count = 0
    while count + 1 < len(totals) and totals[count + 1] < (1 - LEAST_SAVING) * totals[count]:
        count += 1
    chosen = [len(candidates) - 1]
    for k in reversed(range(count)):
        chosen.append(int(before[k][chosen[-1]]))
    return tuple(candidates[j] for j in reversed(chosen))


def input_lengths(lengths: np.ndarray, longest: int, most: int = _MOST) -> tuple[int, ...]:
    """Chooses the lengths of inputs, in training and evaluation: at most six, the last `longest`.

    Args:
      lengths: tokens of every input.
      longest: greatest length of an input.
      most: lengths at most, where fewer than six are wanted.
    """
    return chosen_lengths(lengths, longest, 1 if longest <= SHORT else min(most, _MOST))


def doubled_lengths(longest: int) -> tuple[int, ...]:
    """Lists 32, 64, 128, … and `longest`: for inputs whose lengths are not known beforehand.

    >>> doubled_lengths(100)
    (32, 64, 100)
    """
    doubled = itertools.takewhile(
        lambda length: length < longest, (SHORT * 2**i for i in itertools.count())
    )
    return (*doubled, longest)


def batches_of_like_length(
    lengths: Sequence[int], buckets: Sequence[int], batch_size: int
) -> list[tuple[int, list[int]]]:
    """Divides a finite set of inputs into batches, as few as possible, the longest first.

    Args:
      lengths: tokens of every input, none above the last bucket.
      buckets: lengths to pad to, ascending.
      batch_size: inputs per batch.

    Returns:
      For each batch the length that it is padded to, and the indices of its inputs; only the last
      batch may have fewer than `batch_size`.

    >>> batches_of_like_length([5, 40, 7], buckets=(32, 64), batch_size=2)
    [(64, [1, 0]), (32, [2])]
    """
    bucket_of = np.searchsorted(buckets, lengths)
    order = np.argsort(-bucket_of, kind="stable").tolist()
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [(buckets[bucket_of[batch[0]]], batch) for batch in batches]


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The shapes of batches, and the shape of every row.

    Attributes:
      lengths: the length of every feature, of each shape.
      of_row: int64 [rows], the index of each row's shape.
      next_of: the index of a shape with room for the rows of another, where those fill no batch;
        −1 for the last, which has room for all.
    """

    lengths: tuple[dict[str, int], ...]
    of_row: np.ndarray
    next_of: tuple[int, ...]


def one_shape(longest: Mapping[str, int], rows: int) -> Shapes:
    """Pads all rows to the greatest lengths."""
    return Shapes((dict(longest),), np.zeros(rows, np.int64), (-1,))


def choose_shapes(
    lengths: Mapping[str, np.ndarray],
    longest: Mapping[str, int],
    inputs: Sequence[int] | None = None,
    buckets_targets: bool = True,
) -> Shapes:
    """Chooses the shapes of batches by the lengths of a split's rows.

    Args:
      lengths: tokens of every row, by feature.
      longest: greatest length of each feature; longer rows are cut.
      inputs: lengths of inputs, ascending; None chooses at most six. The greatest is added.
      buckets_targets: also give targets two lengths, where that saves padding: not where the
        student may write a target's place.

    Returns:
      The shapes, each with room for those before it in its inputs.

    Raises:
      InvalidValue: the given lengths are not ascending, or longer than the greatest.
    """
    rows = {name: np.minimum(lengths[name], longest[name]) for name in longest}
    cells = [_steps(rows["inputs"], longest["inputs"], inputs)]
    if buckets_targets:
        cells.append(chosen_lengths(rows["targets"], longest["targets"], most=2))
    else:
        cells.append((longest["targets"],))
    width = len(cells[1])
    cell = np.searchsorted(cells[0], rows["inputs"]) * width
    cell += np.searchsorted(cells[1], rows["targets"])
    # Rows of a rare shape move on to the next: along the targets, then to longer inputs.
    following = [
        i + 1 if (i + 1) % width else (i + width if i + width < len(cells[0]) * width else -1)
        for i in range(len(cells[0]) * width)
    ]
    for i, after in enumerate(following):
        if after >= 0 and (cell == i).sum() < _LEAST_SHARE * len(cell):
            cell[cell == i] = after
    kept = sorted(set(cell.tolist()) | {len(following) - 1})
    index = {old: new for new, old in enumerate(kept)}
    next_of = tuple(index.get(_following(following, old, index), -1) for old in kept)
    of_row = np.array([index[old] for old in cell.tolist()], np.int64)
    shapes = [{"inputs": cells[0][old // width], "targets": cells[1][old % width]} for old in kept]
    if "teacher_inputs" in longest:
        _add_teacher_inputs(shapes, rows["teacher_inputs"], of_row, longest["teacher_inputs"])
    ordered = tuple({name: shape[name] for name in longest} for shape in shapes)
    return Shapes(ordered, of_row, next_of)


def _steps(lengths, longest, given):
    """The lengths of inputs: those given and the greatest, or a choice."""
    if given is None:
        return input_lengths(lengths, longest)
    given = tuple(given)
    if list(given) != sorted(set(given)) or (given and given[-1] > longest):
        raise InvalidValue(
            f"LENGTH_BUCKETS is {list(given)}: give ascending lengths, at most INPUT_LENGTH, "
            f"{longest}"
        )
    return given if given and given[-1] == longest else (*given, longest)


def _following(following, cell, kept):
    """The next shape that is kept."""
    cell = following[cell]
    while cell >= 0 and cell not in kept:
        cell = following[cell]
    return cell


def _add_teacher_inputs(shapes, lengths, of_row, longest):
    """Gives every shape room for the teacher's prompts of its rows, and of those before it."""
    step, room = multiple_of(longest), 0
    for i, shape in enumerate(shapes):
        mine = lengths[of_row == i]
        room = max(room, -(-int(mine.max(initial=1)) // step) * step)
        shape["teacher_inputs"] = min(room, longest)
    shapes[-1]["teacher_inputs"] = longest


class BatchOrder:
    """The rows and the shape of every batch of a training run, as a function of its number."""

    def __init__(
        self,
        shapes: Shapes,
        batch_size: int,
        row_of: Callable[[int], int],
        seed: int,
    ) -> None:
        """Prepares.

        Args:
          shapes: shapes of the batches.
          batch_size: B, rows of a batch over all hosts.
          row_of: the row of each example, numbered through all epochs.
          seed: selects the order of the batches.
        """
        self._shapes, self._size = shapes, batch_size
        self._row_of, self._seed = row_of, seed
        self._batches = len(shapes.of_row) // batch_size  # that are grouped at a time
        self._group: tuple[int, list[tuple[int, list[int]]]] = (-1, [])

    def batch(self, number: int) -> tuple[dict[str, int], np.ndarray]:
        """Returns the lengths of a batch, and its rows int64 [B]."""
        group, place = divmod(number, self._batches)
        if self._group[0] != group:
            self._group = group, self._grouped(group)
        shape, rows = self._group[1][place]
        return self._shapes.lengths[shape], np.array(rows, np.int64)

    def _grouped(self, group: int) -> list[tuple[int, list[int]]]:
        """The batches of a group, shuffled; every row of one has room in its shape."""
        count = self._batches * self._size
        rows = [self._row_of(number) for number in range(group * count, (group + 1) * count)]
        waiting: list[list[int]] = [[] for _ in self._shapes.lengths]
        for row in rows:
            waiting[self._shapes.of_row[row]].append(row)
        batches = []
        for shape, after in enumerate(self._shapes.next_of):
            whole = len(waiting[shape]) // self._size * self._size
            for i in range(0, whole, self._size):
                batches.append((shape, waiting[shape][i : i + self._size]))
            if after >= 0:
                waiting[after] += waiting[shape][whole:]
        order = permutation(len(batches), self._seed, group, _SHUFFLE)
        return _evenly_spread([batches[i] for i in order])


def _evenly_spread(batches: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
    """Spreads the batches of every shape evenly over a group; those of one shape keep their order.

    The gradients of successive batches of one length pull in one direction: in a random order, runs
    of them occur.
    """
    counts = collections.Counter(shape for shape, _ in batches)
    met: collections.Counter[int] = collections.Counter()
    places = []
    for shape, _ in batches:
        places.append((met[shape] + 0.5) / counts[shape])
        met[shape] += 1
    return [batches[i] for i in np.argsort(places, kind="stable")]
