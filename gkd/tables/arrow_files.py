"""Reads Parquet and Arrow files, and the folders of Hugging Face data sets, by pyarrow."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from pyarrow import ipc, parquet
from pyarrow.compute import list_value_length, run_end_decode

from gkd.errors import InvalidFile
from gkd.tables import text_files

_ROWS_AT_ONCE = 1024
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_FILE_MAGIC = b"ARROW1"  # of Arrow's file format; its stream format has none, but an end
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def saved_files(folder: str) -> list[str]:
    """Lists the Arrow files of a folder that `Dataset.save_to_disk` of the package datasets wrote.

    Args:
      folder: path of the folder.

    Returns:
      Paths of the files, in the order of their rows.

    Raises:
      ValueError: it is the folder of several splits, or of something else.
    """
    if os.path.isfile(os.path.join(folder, _SPLITS)):
        splits = _members(os.path.join(folder, _SPLITS), "splits", str)
        raise InvalidFile(
            f"data folder {folder} holds the splits {', '.join(splits)}: name the folder of one, "
            f"e.g. {os.path.join(folder, splits[0] if splits else 'train')}"
        )
    state = os.path.join(folder, _STATE)
    if not os.path.isfile(state):
        raise InvalidFile(
            f"data folder {folder} is no saved data set ({_STATE} is missing): name its files, "
            f"e.g. {os.path.join(folder, 'train-*.parquet')}"
        )
    names = [file.get("filename") for file in _members(state, "_data_files", dict)]
    if any(not isinstance(name, str) or os.path.basename(name) != name for name in names):
        raise InvalidFile(f"{state} names files outside of its folder")
    if _members(state, "_indices_data_files", dict):
        raise InvalidFile(
            f"{state} selects rows by an index, as early versions of datasets did: load and save "
            "it by a present one"
        )
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:
        text_files.check_exists(path)
    return paths


def _members(path: str, name: str, kind: type) -> list[Any]:
    try:
        found = json.loads(text_files.read_text(path)).get(name) or []
    except (ValueError, AttributeError) as error:
        raise InvalidFile(f"{path} is damaged ({error})") from error
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise InvalidFile(f"{path} is damaged: {name} is no list")
    return found


def arrow_rows(
    path: str, fields: Sequence[str] | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Reads the rows of a Parquet or Arrow file, batch by batch.

    Args:
      path: path of the file; .parquet is Parquet, any other name is Arrow's file or stream format.
      fields: names of the fields that are needed, see `fields.value_of`; None reads all.

    Yields:
      (file and row number, row). Dates and decimals are texts, and maps whose keys are texts are
      dictionaries. Where the file has all `fields`, a row has the columns that hold them only.

    Raises:
      ValueError: the file is damaged or of another kind.
    """
    is_parquet = text_files.suffixes(path)[0] == ".parquet"
    number = 0
    try:
        for batch in (_parquet if is_parquet else _arrow)(path, fields):
            columns = [_values(column) for column in batch.columns]
            names = batch.schema.names
            for row in zip(*columns, strict=True) if names else ():
                number += 1
                yield f"{path}: row {number}", dict(zip(names, row, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        with open(path, "rb") as file:
            head = file.read(32)
        if not head.startswith(b"PAR1" if is_parquet else _FILE_MAGIC):
            text_files.check_kind(path, head)
        kind = "Parquet" if is_parquet else "Arrow"
        cause = " ".join(str(error).split())[:200]
        raise InvalidFile(f"{path}: damaged {kind} file after row {number} ({cause})") from error


def _parquet(path: str, fields: Sequence[str] | None) -> Iterator[Any]:
    with parquet.ParquetFile(path, memory_map=True) as file:
        names = _needed(file.schema_arrow.names, fields, path)
        yield from file.iter_batches(_ROWS_AT_ONCE, columns=names)


def _arrow(path: str, fields: Sequence[str] | None) -> Iterator[Any]:
    with pyarrow.memory_map(path) as file:
        if file.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
            reader = ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(max(0, file.size() - len(_STREAM_END)))
            if file.read() != _STREAM_END:  # a reader would take the end of the file for it
                raise pyarrow.ArrowInvalid("the end of the stream is missing")
            file.seek(0)
            batches = reader = ipc.open_stream(file)
        names = _needed(reader.schema.names, fields, path)
        for batch in batches:
            yield batch.select(names)


def _needed(names: list[str], fields: Sequence[str] | None, path: str) -> list[str]:
    """The columns that hold the fields; all columns where some field is in none."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InvalidFile(f"{path}: two columns are named {repeated!r}: give each its own name")
    chosen = []
    for field in fields or ():
        holders = [name for name in names if field == name or field.startswith(f"{name}.")]
        if not holders:
            return names
        chosen += holders
    return list(dict.fromkeys(chosen)) or names


def _values(column: Any) -> list[Any]:
    """The Python values of a column; at every depth what has no Python type is a text."""
    kind, types = column.type, pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _values(column.storage)
    if types.is_dictionary(kind):
        return _values(column.dictionary_decode())
    if types.is_run_end_encoded(kind):
        return _values(run_end_decode(column))
    if types.is_struct(kind):
        return _objects(column)
    if types.is_map(kind):
        pair = pyarrow.struct([("key", kind.key_type), ("value", kind.item_type)])
        pairs = _values(column.cast(pyarrow.list_(pair)))
        if not (types.is_string(kind.key_type) or types.is_large_string(kind.key_type)):
            return pairs
        return [v if v is None else {one["key"]: one["value"] for one in v} for v in pairs]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        items = iter(_values(column.flatten()))
        lengths = list_value_length(column).to_pylist()
        return [None if n is None else list(itertools.islice(items, n)) for n in lengths]
    if (types.is_temporal(kind) and not types.is_interval(kind)) or types.is_decimal(kind):
        # Nanoseconds have no Python type.
        return column.cast(pyarrow.string()).to_pylist()
    if types.is_float16(kind) or types.is_float32(kind):
        scalar = np.float16 if types.is_float16(kind) else np.float32
        # The shortest number of that precision: 0.1 and not 0.10000000149.
        return [None if v is None else float(str(scalar(v))) for v in column.to_pylist()]
    return column.to_pylist()


def _objects(column: Any) -> list[dict[str, Any] | None]:
    """The dictionaries of a column of structs."""
    names = column.type.names
    if len(set(names)) < len(names):
        raise pyarrow.ArrowInvalid("two fields of an object have one name")
    members = [_values(member) for member in column.flatten()]
    rows = zip(*members, strict=True) if members else ((),) * len(column)
    return [
        dict(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, column.is_valid().to_pylist(), strict=True)
    ]
