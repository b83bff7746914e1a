"""Finds and opens the weight files of a Hugging Face directory: safetensors, Flax, PyTorch.

Where a directory has several, the first of these kinds is read: safetensors, then Flax's msgpack,
then PyTorch's .bin; of one kind the whole file rather than shards, as transformers does. The choice
does not depend on what is installed. Everything else is refused in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from gkd.errors import InvalidFile, MissingFile, MissingPackage
from gkd.files.json_files import read_json, shown
from gkd.files.lfs_pointers import refuse_lfs_pointer
from gkd.tensor_files.msgpack_file import FLOAT_TYPES, StoredArray, index_msgpack, read_array
from gkd.tensor_files.safetensors_files import converted, open_safetensors
from gkd.tensor_files.tensor import Tensor
from gkd.tensor_files.torch_files import import_torch, open_torch

SAFETENSORS, FLAX, TORCH = "model.safetensors", "flax_model.msgpack", "pytorch_model.bin"
KINDS = (SAFETENSORS, FLAX, TORCH)
INDEX_SUFFIX = ".index.json"
# Names of the embedding table, of which a file has one or more.
TABLES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# And of tied heads and tables of other families; an index may name copies that no file holds.
_COPIES = (
    *TABLES,
    "lm_head.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
)
_LONGEST_NAME = 255  # bytes of a file name on most file systems
ADAPTER_CONFIG = "adapter_config.json"
# Endings of files that hold weights in forms that are not read.
_OTHER_KINDS = {
    ".h5": "TensorFlow's weights",
    ".gguf": "llama.cpp's weights, quantised or not",
    ".onnx": "an ONNX program",
    ".index": "the index of a TensorFlow checkpoint",
    ".ot": "weights of rust-bert",
    ".msgpack": "weights of Flax under another name",
    ".safetensors": "safetensors under another name",
    ".bin": "a pickle of PyTorch under another name",
    ".pt": "a pickle of PyTorch",
    ".pth": "a pickle of PyTorch",
    ".ckpt": "a pickle or TensorFlow's weights",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
}


def find_weights(names: Container[str]) -> tuple[str, str] | None:
    """Chooses the weights to read among the files of a directory.

    Args:
      names: names of the files.

    Returns:
      (kind: one of `KINDS`, name of the file or of the index of its shards); None without weights.

    >>> find_weights(["pytorch_model.bin", "flax_model.msgpack.index.json", "config.json"])
    ('flax_model.msgpack', 'flax_model.msgpack.index.json')
    """
    for kind in KINDS:
        for name in (kind, kind + INDEX_SUFFIX):
            if name in names:
                return kind, name
    return None


def open_weights(directory: epath.PathLike) -> dict[str, Tensor]:
    """Opens the weights of a Hugging Face directory, reading only headers.

    Args:
      directory: path of the directory.

    Returns:
      The unread tensors by transformers' names, in the orientation of its PyTorch models.

    Raises:
      FileNotFoundError: there are no weights, or a shard is missing.
      ValueError: a file is damaged, or the weights are of a kind that is not read.
      ImportError: the weights are PyTorch's, which is not installed.
    """
    directory = epath.Path(directory)
    names = {path.name for path in directory.iterdir()}
    found = find_weights(names)
    if found is None or ADAPTER_CONFIG in names:
        raise MissingFile(f"{directory} has no weights that are read{describe_folder(directory)}")
    kind, name = found
    if kind == TORCH:
        refuse_lfs_pointer(directory / name)
        command = f"`hf download NAME --revision refs/pr/N --local-dir {directory}`"
        require_torch(f"{directory / name}", command)
    return _open_kind(directory, kind, name)


def require_torch(where: str, conversion: str) -> None:
    """Refuses PyTorch's files where PyTorch is not installed, and names the three ways to weights.

    Args:
      where: the file, for the message.
      conversion: command or name that takes a conversion to safetensors.

    Raises:
      ImportError: PyTorch is not installed.
      ValueError: the installed PyTorch is too old to be safe.
    """
    try:
        import_torch(where)
    except MissingPackage as error:
        raise MissingPackage(
            f"{error}: (1) take a safetensors conversion, {conversion}, where the model has such a "
            "pull request on the Hugging Face Hub; (2) `pip install torch` (the CPU wheel "
            "suffices); or (3) take T5X's own checkpoint of the model from "
            "gs://t5-data/pretrained_models/t5x (docs/models.md)"
        ) from error


def _open_kind(directory: epath.Path, kind: str, name: str) -> dict[str, Tensor]:
    opener = _OPENERS[kind]
    if name == kind:
        return opener(directory / name)
    index = directory / name
    suffix = epath.Path(kind).suffix
    places = read_places(index, suffix)
    if kind == FLAX:
        places = {_theirs(tuple(key.split("/")))[0]: file for key, file in places.items()}
    tensors: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    for file in sorted(set(places.values())):
        shard = opener(directory / file)
        again = next((name for name in shard if name in held), None)
        if again is not None:
            raise InvalidFile(f"{directory / file} holds {again}, which {held[again]} has too")
        tensors.update(shard)
        held.update(dict.fromkeys(shard, file))
    lost = [name for name in sorted(places) if held.get(name) != places[name]]
    # Converters to safetensors keep one of equal tensors, and the index as it was.
    lost = next((name for name in lost if name not in _COPIES or name in held), None)
    if lost is not None:
        raise InvalidFile(f"{index} places {lost} in {places[lost]}, which does not hold it")
    return tensors


def read_places(index: epath.Path, suffix: str) -> dict[str, str]:
    """Reads the index of a sharded checkpoint.

    Args:
      index: path of the index.
      suffix: ending of the names of shards: '.safetensors', '.msgpack' or '.bin'.

    Returns:
      The file name of every tensor by name.

    Raises:
      ValueError: the index is damaged, or names something else than a shard beside it.
    """
    places = read_json(index, dict).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise InvalidFile(f"{index} has no weight_map of tensor to file")
    for name in set(places.values()):
        plain = len(name) <= _LONGEST_NAME and name.isprintable() and epath.Path(name).name == name
        if not plain or not name.endswith(suffix):
            raise InvalidFile(
                f"{index} names {shown(name)}: only a {suffix} file beside it is read"
            )
    return places


def _open_safetensors(path: epath.Path) -> dict[str, Tensor]:
    if path.exists():
        refuse_lfs_pointer(path)
    return open_safetensors(path)


def open_flax(path: epath.PathLike) -> dict[str, Tensor]:
    """Opens the msgpack file of a Flax model of transformers, reading only headers.

    Args:
      path: path of the file.

    Returns:
      The unread tensors under the names and in the orientation of the PyTorch model.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or holds something else than floating-point arrays.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingFile(f"{path} does not exist: the checkpoint is not complete")
    refuse_lfs_pointer(path)
    tree = index_msgpack(path, lambda keys: True)
    if set(tree) == {"params"} and isinstance(tree["params"], dict):
        tree = tree["params"]
    tensors = {}
    for keys, stored in _leaves(tree, ()):
        where = f"{path}: {'/'.join(keys)}"
        if not isinstance(stored, StoredArray) or stored.type_name not in FLOAT_TYPES:
            kind = stored.type_name if isinstance(stored, StoredArray) else shown(stored)
            raise InvalidFile(f"{where} is {kind}, not floating-point weights")
        name, transposed = _theirs(keys)
        if not name.isprintable():
            raise InvalidFile(f"{path} is damaged: a tensor's name is {shown(name)}")
        dtype = FLOAT_TYPES[stored.type_name]
        tensor = Tensor(stored.shape, dtype, where, _reader(path, stored))
        if name in tensors:
            raise InvalidFile(f"{path} is damaged: {name} is there twice")
        if transposed:
            tensor = converted(tensor, stored.shape[::-1], np.transpose)
        tensors[name] = tensor
    return tensors


def _leaves(tree: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[tuple, Any]]:
    for name, value in tree.items():
        path = (*keys, *name.split("/"))
        if isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value


def _reader(path: epath.Path, stored: StoredArray) -> Callable[[], np.ndarray]:
    return lambda: read_array(path, stored)


def _theirs(keys: tuple[str, ...]) -> tuple[str, bool]:
    """The PyTorch name of a Flax parameter, and True for kernels, which are transposed there."""
    *parents, last = keys
    last = "weight" if last in ("kernel", "embedding") else last
    return ".".join([*parents, last]), keys[-1] == "kernel"


_OPENERS: dict[str, Callable[[epath.Path], dict[str, Tensor]]] = {
    SAFETENSORS: _open_safetensors,
    FLAX: open_flax,
    TORCH: open_torch,
}


def describe_folder(directory: epath.Path) -> str:
    """Describes the weights of a directory that are of kinds that are not read, with the remedy.

    Args:
      directory: path of the directory.

    Returns:
      A clause that begins with ': '; without any such file it lists what there is.
    """
    names = [path.name for path in directory.iterdir()]
    if ADAPTER_CONFIG not in names:
        return describe_files(names)
    base = read_json(directory / ADAPTER_CONFIG, dict).get("base_model_name_or_path")
    return describe_files(names, f" of {shown(base)}")


def describe_files(names: Iterable[str], base: str = "") -> str:
    """Describes weights of kinds that are not read by their names, with the remedy.

    Args:
      names: names of the files of a folder or repository.
      base: name of an adapter's base model, after ' of '.

    Returns:
      A clause that begins with ': '.
    """
    names = sorted(names)
    if ADAPTER_CONFIG in names:
        return (
            f": it is an adapter (PEFT){base}; merge it into its base model with peft's "
            "`merge_and_unload`, and save the result with `save_pretrained` in a new folder"
        )
    ours = " or ".join(KINDS)
    for suffix, kind in _OTHER_KINDS.items():
        name = next((name for name in names if name.endswith(suffix)), None)
        if name is not None:
            return f": {name} is {kind}; wanted {ours}, see docs/models.md"
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f": it holds {listed or 'nothing'}; wanted {ours} (was the download complete?)"
