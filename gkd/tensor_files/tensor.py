"""The description of an unread tensor in a file, which the readers of all formats return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An unread tensor in a file.

    Attributes:
      shape: shape in this project's orientation.
      dtype: NumPy dtype in the file (bfloat16 is that of ml_dtypes).
      where: path of the file and name of the tensor, for messages.
      read: function that reads the array from the file, with this shape and dtype, at each call.
      place: (file, offset) of the bytes if they are stored row-major in this orientation, or None.
      stack: name of the stack of layers that it is a part of, which is best read part by part.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    where: str
    read: Callable[[], np.ndarray]
    place: tuple[epath.Path, int] | None = None
    stack: str | None = None
