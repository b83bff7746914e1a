"""Reads the tensors of PyTorch's .bin files through PyTorch, where it is installed.

Such files are pickles. They are opened by `torch.load(weights_only=True)` alone, which builds
tensors and containers and runs nothing else; versions of PyTorch in which that could be
circumvented (CVE-2025-32434) are refused. Files since PyTorch 1.6 are mapped into memory, so that
opening them reads no values.
"""

from __future__ import annotations

import functools
import re
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from gkd.errors import InvalidFile, InvalidValue, MissingFile, MissingPackage, one_line
from gkd.files.json_files import shown
from gkd.files.lfs_pointers import refuse_lfs_pointer
from gkd.tensor_files.tensor import Tensor

SAFE_VERSION = (2, 6)
_KINDS = {
    "torch.float64 (torch.strided, cpu)": np.dtype(np.float64),
    "torch.float32 (torch.strided, cpu)": np.dtype(np.float32),
    "torch.float16 (torch.strided, cpu)": np.dtype(np.float16),
    "torch.bfloat16 (torch.strided, cpu)": np.dtype(ml_dtypes.bfloat16),
}
_ZIP = b"PK\x03\x04"  # first bytes of a file that torch.save has written since version 1.6
_PICKLE = b"\x80"  # first byte of an older one


def open_torch(path: epath.PathLike) -> dict[str, Tensor]:
    """Opens a file of `torch.save` that holds a table of tensors.

    Args:
      path: path of the file, which must be local.

    Returns:
      The unread tensors by name, in C order when read, whatever their strides in the file. Tensors
      with the same values in the same memory (tied weights) share one `read`.

    Raises:
      ImportError: PyTorch is not installed.
      ValueError: the file is truncated, damaged, or holds something else than such a table; or the
        installed PyTorch is too old to be safe.
      FileNotFoundError: there is no such file.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingFile(f"{path} does not exist: the checkpoint is not complete")
    refuse_lfs_pointer(path)
    torch = import_torch(f"{path}")
    state = _load(torch, path)
    if not isinstance(state, Mapping):
        raise InvalidFile(f"{path} holds a {type(state).__name__}, not a table of tensors")
    verify = functools.cache(functools.partial(_verify, path))
    tensors: dict[str, Tensor] = {}
    reads: dict[Any, Any] = {}
    for name, value in state.items():
        where = f"{path}: {name}"
        if not isinstance(name, str) or not name.isprintable():
            raise InvalidFile(f"{path}: a tensor's name is {shown(name)}")
        if not isinstance(value, torch.Tensor):
            raise InvalidFile(
                f"{where} is a {type(value).__name__}, not a tensor: save the model's state_dict "
                "(or `save_pretrained`) by itself"
            )
        kind = f"{value.dtype} ({value.layout}, {value.device})"
        if kind not in _KINDS:
            raise InvalidFile(
                f"{where} is {kind}: weights are dense float64, float32, float16 or bfloat16"
            )
        shape, dtype = tuple(value.shape), _KINDS[kind]
        same = (value.data_ptr(), shape, value.stride(), dtype, value.is_neg())
        reads.setdefault(same, functools.partial(_read, torch, value.detach(), verify))
        tensors[name] = Tensor(shape, dtype, where, reads[same])
    return tensors


def import_torch(where: str) -> types.ModuleType:
    """Imports PyTorch to read a file.

    Args:
      where: the file, for the message.

    Raises:
      ImportError: PyTorch is not installed.
      ValueError: the installed version is not safe.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(f"{where} is a file of PyTorch, which is not installed") from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_VERSION:
        raise InvalidValue(
            f"{where} is a pickle, and PyTorch {torch.__version__} can be made to run code when it "
            "reads one (CVE-2025-32434): install PyTorch 2.6 or later"
        )
    return torch


def _load(torch: types.ModuleType, path: epath.Path) -> Any:
    with path.open("rb") as file:
        first = file.read(len(_ZIP))
    if first != _ZIP and not first.startswith(_PICKLE):
        raise InvalidFile(f"{path} is no file of PyTorch: it begins with {shown(first)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated storages in old files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=first == _ZIP)
    except OSError:
        raise
    except Exception as error:  # PyTorch raises many types for damaged files
        reason = one_line(error)
        if "weights_only" in reason or "Weights only" in reason:
            raise InvalidFile(
                f"{path} is a pickle that is damaged or holds more than tensors, which could run "
                "any code when it is read: it is not opened; save the model's weights as "
                "safetensors"
            ) from error
        raise InvalidFile(f"{path} is truncated or damaged: {reason.split('. ')[0]}") from error


def _verify(path: epath.Path) -> None:
    """Compares a file with the checksums in it, which PyTorch ignores in memory maps."""
    if not zipfile.is_zipfile(path):  # a file of PyTorch before 1.6 has none
        return
    try:
        with zipfile.ZipFile(path) as archive:
            without = all(record.CRC == 0 for record in archive.infolist())  # an option of PyTorch
            damaged = None if without else archive.testzip()
    except (ValueError, zipfile.BadZipFile, NotImplementedError, zlib.error) as error:
        raise InvalidFile(f"{path} is damaged: {one_line(error)}") from error
    if damaged is not None:
        raise InvalidFile(f"{path} is damaged: {damaged} does not have its checksum")


def _read(torch: types.ModuleType, value: Any, verify: Callable[[], None]) -> np.ndarray:
    """Copies a tensor to a NumPy array in C order."""
    verify()
    value = value.resolve_neg()
    if value.dtype == torch.bfloat16:  # NumPy itself has no such type
        return value.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return value.numpy().copy()
