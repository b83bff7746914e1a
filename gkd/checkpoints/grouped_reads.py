"""Reads small arrays of a step folder together: Orbax reads the folder's index at every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

GROUP_BYTES = 16 << 20


class GroupedReads:
    """Reads arrays one by one, with small neighbours in one call.

    What is read beside the wanted array stays in memory until it is wanted, or another group is.

    Args:
      read: reads arrays by their names.
      sizes: bytes of every array, in the order in which they are mostly wanted.
      group_bytes: bytes of a group; a larger array is read alone.
    """

    def __init__(
        self,
        read: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
        sizes: Mapping[str, int],
        group_bytes: int = GROUP_BYTES,
    ):
        self._read = read
        self._kept: dict[str, np.ndarray] = {}
        self._groups: dict[str, list[str]] = {}
        group, size = [], 0
        for name, own in sizes.items():
            if group and size + own > group_bytes:
                group, size = [], 0
            group.append(name)
            size += own
            self._groups[name] = group

    def read(self, name: str) -> np.ndarray:
        """Returns the array of a name."""
        array = self._kept.pop(name, None)
        if array is None:
            found = dict(self._read(self._groups[name]))
            array = found.pop(name)
            self._kept = found
        return array
