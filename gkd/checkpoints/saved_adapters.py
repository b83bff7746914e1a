"""Checkpoints of low-rank adapters: opened as the whole model, base and adapters multiplied out."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from gkd.checkpoints.tensors import Checkpoint
from gkd.errors import InvalidFile, MissingFile
from gkd.files.json_files import Field, check_fields
from gkd.models.architecture import with_ids_of
from gkd.models.lora import LoRA
from gkd.tensor_files.tensor import Tensor

_FIELDS = {
    "lora": Field(kinds=(dict,), required=True),
    "base": Field(kinds=(str,), required=True),
    "base_from_run": Field(kinds=(str,), none=True, required=True),
    "checksums": Field(kinds=(dict,), required=True),
}


@dataclasses.dataclass(frozen=True)
class SavedAdapters:
    """The description of a run's adapters, saved with every step.

    Attributes:
      lora: their settings.
      base: name of the checkpoint that they are added to: an absolute path, or OWNER/NAME@COMMIT.
      base_from_run: its path from the run directory, for a tree that was moved; None where `base`
        is no path.
      checksums: CRC-32 of every tensor of the base, by name: another base gives wrong outputs.
    """

    lora: LoRA
    base: str
    base_from_run: str | None
    checksums: Mapping[str, int]

    @classmethod
    def of_base(
        cls, lora: LoRA, base: Checkpoint, checksums: Mapping[str, int], run: epath.PathLike
    ) -> SavedAdapters:
        """Describes adapters.

        Args:
          lora: their settings.
          base: the checkpoint that they are added to.
          checksums: see `with_checksums`.
          run: path of the run directory.
        """
        if base.source or "://" in str(base.path):
            return cls(lora, base.name, None, checksums)
        path = os.path.realpath(base.path)
        return cls(lora, path, os.path.relpath(path, os.path.realpath(run)), checksums)

    def describe(self) -> dict[str, Any]:
        """Returns the JSON that `from_description` reads."""
        return {
            "lora": self.lora.describe(),
            "base": self.base,
            "base_from_run": self.base_from_run,
            "checksums": dict(self.checksums),
        }

    @classmethod
    def from_description(cls, saved: Mapping[str, Any], where: str) -> SavedAdapters:
        """Inverts `describe`.

        Raises:
          InvalidFile: a field is missing or out of bounds.
        """
        check_fields(saved, _FIELDS, where)
        lora = LoRA.from_description(saved["lora"], where)
        return cls(lora, saved["base"], saved["base_from_run"], saved["checksums"])

    def find_base(self, run: epath.PathLike) -> str:
        """Finds the base: where it was, or where it is from the run directory.

        Args:
          run: path of the run directory.

        Raises:
          MissingFile: it is at neither place.
        """
        if self.base_from_run is None or os.path.isdir(self.base):
            return self.base
        moved = os.path.normpath(os.path.join(run, self.base_from_run))
        if os.path.isdir(moved):
            return moved
        raise MissingFile(
            f"{run} holds adapters of {self.base}, which does not exist: put that model back there"
            + (f", or at {moved}" if moved != self.base else "")
        )


def with_checksums(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Wraps tensors so that reading one records its checksum.

    Args:
      tensors: tensors by name.

    Returns:
      The tensors, and the checksums by name, empty until they are read.
    """
    checksums: dict[str, int] = {}

    def reader(name, tensor):
        def read():
            array = tensor.read()
            checksums[name] = _checksum(array)
            return array

        return read

    wrapped = {
        name: dataclasses.replace(tensor, read=reader(name, tensor))
        for name, tensor in tensors.items()
    }
    return wrapped, checksums


def check_same_base(saved: Mapping[str, int], found: Mapping[str, int], where: Any) -> None:
    """Refuses a base with other weights than those that adapters were trained on.

    Args:
      saved: checksums of the base of the training.
      found: checksums of the base now.
      where: path of the base, for the message.

    Raises:
      InvalidFile: they differ.
    """
    changed = sorted(name for name in {*saved, *found} if saved.get(name) != found.get(name))
    if changed:
        raise InvalidFile(
            f"{where} has other weights than the base that the adapters were trained on "
            f"(e.g. {changed[0]}): put that base back there"
        )


def whole(adapters: Checkpoint, open_base: Callable[[str], Checkpoint]) -> Checkpoint:
    """Opens a checkpoint of adapters as the model that base and adapters are together.

    Args:
      adapters: a run's checkpoint, whose `adapters` are described and whose tensors are theirs.
      open_base: opens a checkpoint of any format by name.

    Returns:
      The checkpoint with the tensors of the whole model, in float32 where adapters are added; each
      is read, checked and multiplied out when it is needed.

    Raises:
      MissingFile: the base does not exist.
      InvalidFile: it is another architecture, or the adapters do not fit.
    """
    saved = adapters.adapters
    base = open_base(saved.find_base(adapters.path.parent.parent))
    wanted = adapters.config.with_execution(dtype=base.config.dtype)
    if with_ids_of(base.config, wanted) != wanted:
        raise InvalidFile(
            f"{adapters.path} holds adapters of another architecture than {base.path}, which is at "
            "the place of their base"
        )
    pairs = dict(adapters.tensors)
    tensors = {}
    for name, tensor in base.tensors.items():
        checked = _checked(name, tensor, saved.checksums.get(name), base.path)
        pair = [pairs.pop(f"{name}/{half}", None) for half in ("a", "b")]
        if pair == [None, None]:
            tensors[name] = checked
            continue
        rank = saved.lora.rank
        shapes = [(tensor.shape[0], rank), (rank, tensor.shape[1])]
        if None in pair or [half.shape for half in pair] != shapes:
            raise InvalidFile(f"{adapters.path}: the adapters of {name} do not fit its base")
        tensors[name] = _added(checked, *pair, saved.lora.scale)
    if pairs:
        raise InvalidFile(f"{adapters.path}: adapters of no tensor of the base: {min(pairs)}")
    return dataclasses.replace(adapters, tensors=tensors, adapter_tensors=adapters.tensors)


def _checked(name: str, tensor: Tensor, checksum: int | None, where: Any) -> Tensor:
    def read():
        array = tensor.read()
        check_same_base({name: checksum}, {name: _checksum(array)}, where)
        return array

    return dataclasses.replace(tensor, read=read, place=None)


def _added(tensor: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """A kernel with its adapters, float32 at least."""
    dtype = np.promote_types(tensor.dtype, np.float32)

    def read():
        product = np.matmul(a.read().astype(dtype), b.read().astype(dtype))
        return tensor.read().astype(dtype) + dtype.type(scale) * product

    return dataclasses.replace(tensor, dtype=dtype, read=read, place=None)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data)
