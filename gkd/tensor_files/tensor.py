"""A tensor in a file, described but not read: what the readers of every file format return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file, not read yet.

    Attributes:
      shape: its shape in this project's orientation.
      dtype: its NumPy dtype in the file (bfloat16 is ml_dtypes').
      where: the file and the tensor's name there, for messages.
      read: () -> the array, of that shape and dtype; reads the file each time it is called.
      place: (file, offset) where its bytes lie row-major as they are; None where they do not.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    where: str
    read: Callable[[], np.ndarray]
    place: tuple[epath.Path, int] | None = None
