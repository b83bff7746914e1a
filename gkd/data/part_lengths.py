"""Lengths of the parts of a batch: its rows are laid out by length, and each part is padded little.

A batch has the rows that it has anyway. They are divided into K parts by their length, and a part
of every shard of the batch is one block of adjacent rows. The lengths of the parts are one of a few
profiles, because each profile is a program to compile.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from gkd.data.length_buckets import LEAST_SAVING, SHORT, multiple_of
from gkd.models.row_parts import RowParts, shorter_parts

# The batch's field for the parts of each feature.
PART_FIELDS = {"inputs": "input_parts", "teacher_inputs": "teacher_input_parts"}
Profile = Mapping[str, tuple[int, ...]]

MOST_PARTS = 4
_MOST_PROFILES = 4
BATCHES = 2000  # at the start of a run, for which the profiles are chosen


def parts_of(rows: int, unit: int) -> int:
    """Chooses the number of parts: the largest of 4, 2 and 1 that divides the rows evenly.

    Args:
      rows: B, rows of a batch.
      unit: number of equal groups that the rows of every part are divided into: shards of the rows
        times microbatches.

    >>> parts_of(32, unit=2), parts_of(32, unit=16), parts_of(24, unit=8)
    (4, 2, 1)
    """
    return next(parts for parts in (MOST_PARTS, 2, 1) if rows % (unit * parts) == 0 or parts == 1)


def parts_by_field(
    profile: Profile, lengths: Mapping[str, int], shards: int
) -> dict[str, RowParts | None]:
    """Returns the parts of a batch by its fields; None where no part of a feature is shorter.

    Args:
      profile: lengths of the parts of the features that are laid out.
      lengths: length of every feature's array.
      shards: D.
    """
    return {
        PART_FIELDS[name]: shorter_parts(parts, lengths[name], shards)
        for name, parts in profile.items()
    }


def by_length(lengths: np.ndarray, parts: int, shards: int) -> np.ndarray:
    """Lays out rows in parts, the longest rows first.

    Args:
      lengths: tokens of every row [B].
      parts: K.
      shards: D, shards of the rows; each has an equal share of every part.

    Returns:
      int64 [B], the rows in their new order.

    >>> by_length(np.array([9, 2, 7, 4, 8, 1, 6, 3]), parts=2, shards=2).tolist()
    [0, 4, 3, 7, 2, 6, 1, 5]
    """
    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    return longest_first.reshape(parts, shards, -1).swapaxes(0, 1).reshape(-1)


@dataclasses.dataclass(frozen=True)
class PartSizes:
    """The parts that a run's batches can be laid out in.

    Attributes:
      parts: K, parts of a batch.
      shards: D, shards of its rows.
    """

    parts: int = MOST_PARTS
    shards: int = 1


@dataclasses.dataclass(frozen=True)
class PartLayout:
    """The layout of a run's batches in parts.

    Attributes:
      parts: K.
      shards: D.
      profiles: lengths of the parts by feature, the fewest positions first; the last has the
        greatest lengths.
    """

    parts: int
    shards: int
    profiles: tuple[Profile, ...]

    def arrange(self, lengths: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Profile]:
        """Arranges a batch, and chooses the profile with the fewest positions that has room for it.

        Args:
          lengths: tokens of every row [B], by feature, at most the greatest.

        Returns:
          The rows in their new order, int64 [B], and the profile.
        """
        needed = _needed(lengths, self.parts)
        profile = next(profile for profile in self.profiles if _has_room(profile, needed))
        return by_length(lengths["inputs"], self.parts, self.shards), profile


def _needed(lengths, parts):
    """The greatest length in every part, by feature."""
    order = np.argsort(-np.asarray(lengths["inputs"]), kind="stable").reshape(parts, -1)
    return {name: np.asarray(rows)[order].max(axis=1) for name, rows in lengths.items()}


def _has_room(profile, needed):
    return all((needed[name] <= profile[name]).all() for name in profile)


def choose_layout(
    batches: Sequence[np.ndarray] | np.ndarray,
    lengths: Mapping[str, np.ndarray],
    longest: Mapping[str, int],
    parts: int,
    shards: int = 1,
) -> PartLayout | None:
    """Chooses the profiles for a run's batches: at most four, each of which saves at least 3%.

    Args:
      batches: numbers of the rows of every batch, [batches, B].
      lengths: tokens of every row of the split, by feature.
      longest: greatest length of each feature of the prompts; longer rows are cut.
      parts, shards: see `PartLayout`.

    Returns:
      The layout; None where parts save less than 3%, as of inputs that all have one length.

    Three of four rows are short:

    >>> rows = np.array([[0, 1, 2, 3]] * 10)
    >>> lengths = {"inputs": np.array([90, 10, 12, 30])}
    >>> choose_layout(rows, lengths, {"inputs": 96}, parts=4).profiles
    ({'inputs': (96, 32, 16, 16)}, {'inputs': (96, 96, 96, 96)})
    """
    if parts < 2 or not len(batches):
        return None
    needed = np.concatenate([_room(batches, lengths, longest, name, parts) for name in longest], 1)
    needed, counts = np.unique(needed, axis=0, return_counts=True)  # [U, F·K]
    chosen = _cover(needed, counts, np.repeat(list(longest.values()), parts))
    if len(chosen) == 1:
        return None
    chosen.sort(key=lambda profile: (profile.sum(), profile.tolist()))
    by_feature = [profile.reshape(len(longest), parts).tolist() for profile in chosen]
    profiles = [dict(zip(longest, map(tuple, own), strict=True)) for own in by_feature]
    return PartLayout(parts, shards, tuple(profiles))


def _room(batches, lengths, longest, name, parts):
    """The lengths that the parts of every batch need [batches, K], in steps."""
    most, step = longest[name], multiple_of(longest[name])
    if most <= SHORT:
        return np.full((len(batches), parts), most)
    inputs, own = (np.minimum(lengths[one], longest[one]) for one in ("inputs", name))
    order = np.argsort(-inputs[batches], axis=1, kind="stable")
    rows = np.take_along_axis(own[batches], order, axis=1)  # [batches, B]
    greatest = rows.reshape(len(batches), parts, -1).max(axis=2)
    return np.clip(-(-greatest // step) * step, step, most)


def _cover(needed, counts, longest):
    """Adds the profile that saves most, one after the other, while it saves enough."""
    candidates = _candidates(needed, counts)
    fits = (candidates[None] >= needed[:, None]).all(axis=2)  # [U, C]
    costs = np.where(fits, candidates.sum(axis=1)[None], longest.sum())
    chosen: list[int] = []
    cost = np.full(len(needed), longest.sum())  # of every kind of batch in its best profile
    while len(chosen) + 1 < _MOST_PROFILES:
        totals = counts @ np.minimum(cost[:, None], costs)  # [C]
        best = int(totals.argmin())
        if totals[best] > (1 - LEAST_SAVING) * (counts @ cost):
            break
        chosen.append(best)
        cost = np.minimum(cost, costs[:, best])
        # A later one may replace an earlier one.
        used = set(costs[cost < longest.sum()][:, chosen].argmin(axis=1))
        chosen = [profile for i, profile in enumerate(chosen) if i in used]
    return [longest, *candidates[chosen]]


def _candidates(needed, counts):
    """The most frequent lengths of parts, and quantiles of each part's, falling or rising in it."""
    weighed = np.repeat(needed, counts, axis=0)
    shares = np.linspace(0.2, 1, 9)
    quantiles = np.quantile(weighed, shares, axis=0, method="higher")  # [9, F·K]
    pairs = itertools.product(range(len(shares)), repeat=2)
    columns = np.arange(needed.shape[1])
    mixed = [
        quantiles[np.rint(np.linspace(first, last, len(columns))).astype(int), columns]
        for first, last in pairs
    ]
    frequent = needed[np.argsort(-counts, kind="stable")[:60]]
    return np.unique(np.concatenate([mixed, frequent]), axis=0)
