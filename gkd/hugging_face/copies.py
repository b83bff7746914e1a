"""Finds copies of the embedding table among the tensors of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile
from gkd.tensor_files.safetensors_files import same_values
from gkd.tensor_files.tensor import Tensor


def find_copies(
    files: Mapping[str, Tensor], table: str, names: Sequence[str], where: Any
) -> tuple[str, ...]:
    """Lists the tensors that repeat a table that config.json ties to them.

    Args:
      files: unread tensors by name.
      table: name of the table.
      names: names that a copy may have.
      where: path of config.json, for messages.

    Returns:
      Those of the names that exist.

    Raises:
      ValueError: one differs from the table.
    """
    found = tuple(name for name in names if name in files and table in files)
    for name in found:
        if not same_values(files[table], files[name]):
            raise InvalidFile(
                f"{where}: {name} is tied to {table} by tie_word_embeddings, but differs from it: "
                "set tie_word_embeddings to false, or leave the copy out"
            )
    return found
