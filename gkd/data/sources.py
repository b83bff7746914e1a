"""Reads rows from JSONL and TSV files (also gzipped), TFDS or seqio, as seqio data sources."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gkd.data.tsv import tsv_rows
from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.vocabularies.tensorflow_host import seqio, tf

ENVIRONMENT = "GKD_DATA"
PRETOKENIZED = ("inputs_pretokenized", "targets_pretokenized")
_SLICE = re.compile(r"^(?P<path>.*?)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?$")


def resolved(path: str, directory: str | None = None) -> str:
    """Resolves a configured path.

    Args:
      path: absolute path, or path relative to a data directory.
      directory: the data directory; by default the environment variable GKD_DATA, else the current
        directory.

    >>> resolved("train.jsonl", "/data"), resolved("/elsewhere/train.jsonl", "/data")
    ('/data/train.jsonl', '/elsewhere/train.jsonl')
    """
    return os.path.join(directory or os.environ.get(ENVIRONMENT) or "", path)


def read_rows(
    path: str,
    fields: Sequence[str],
    columns: Sequence[str] | None = None,
    lists: Sequence[str] = (),
    escapes: bool = False,
) -> list[dict[str, Any]]:
    """Reads the rows of a data file, and checks every field.

    Args:
      path: path of a .jsonl or .tsv file, or of such a file with .gz after it.
      fields: names of the fields to read; every row must have each of them as text.
      columns: names of the columns of a TSV file; by default its first line holds them.
      lists: names of further fields to read, which hold lists of texts.
      escapes: replace \\n and \\t in cells of a TSV file by a newline and a tab.

    Returns:
      One dictionary per row, with `fields` and `lists` only.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is malformed; the text names file, line number and field.
    """
    _check_exists(path)
    rows = numbered_rows(path, columns, escapes)
    if rows is None:
        raise InvalidValue(f"data file {path} is neither .jsonl nor .tsv (nor one of them .gz)")
    wanted = {**dict.fromkeys(fields, False), **dict.fromkeys(lists, True)}
    return [
        {field: _field(row, field, many, f"{path}:{number}") for field, many in wanted.items()}
        for number, row in rows
    ]


def _field(row: Mapping[str, Any], field: str, many: bool, where: str) -> Any:
    if field not in row:
        raise InvalidFile(f"{where}: no field {field!r}; the row has {', '.join(map(str, row))}")
    value = row[field]
    if many and isinstance(value, list) and all(isinstance(text, str) for text in value):
        for text in value:
            check_encodes(text, f"{where}: field {field!r}")
        return value
    if many or not isinstance(value, str):
        needs = "a list of texts" if many else "text"
        raise InvalidFile(f"{where}: field {field!r} is {type(value).__name__}, needs {needs}")
    check_encodes(value, f"{where}: field {field!r}")
    return value


def check_encodes(text: str, name: str) -> None:
    """Checks that a text can be encoded: a truncated JSON escape leaves half a surrogate pair.

    Args:
      text: the text.
      name: name of the text in the message, e.g. its file, line and field.

    Raises:
      ValueError: the text holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InvalidFile(
            f"{name} is no valid text: character {error.start} is {half!r}, half of a surrogate "
            "pair: correct or drop the row"
        ) from error


def read_text(path: str) -> str:
    """Reads a whole UTF-8 file, e.g. of exemplars.

    Args:
      path: path of the file.

    Returns:
      The text, without a byte-order mark.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not UTF-8.
    """
    _check_exists(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InvalidFile(f"{path}: not UTF-8 ({error.reason})") from error


def _check_exists(path: str) -> None:
    if not os.path.isfile(path):
        raise MissingFile(
            f"data file {path} does not exist: correct `files`, or set {ENVIRONMENT} (or the gin "
            "macro DATA) to the directory that relative paths start from"
        )


def numbered_rows(
    path: str, columns: Sequence[str] | None = None, escapes: bool = False
) -> Iterator[tuple[int, Mapping[str, Any]]] | None:
    """Reads the rows of a data file with their line numbers.

    Args:
      path, columns, escapes: as in `read_rows`.

    Returns:
      An iterator of (line number, row); None if the name has no known extension.

    Raises:
      ValueError: while iterating, a line is malformed; the text names file and line number.
    """
    name = path.removesuffix(".gz")
    if name.endswith((".jsonl", ".json")):
        return json_rows(path)
    if name.endswith(".tsv"):
        rows = tsv_rows(lines(path), path, columns)
        return ((number, _unescaped(row)) for number, row in rows) if escapes else rows
    return None


def _unescaped(row: Mapping[str, str]) -> dict[str, str]:
    """Replaces the escapes \\n and \\t in all cells, which e.g. FLAN's files use."""
    return {name: cell.replace("\\n", "\n").replace("\\t", "\t") for name, cell in row.items()}


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Reads the numbered lines of a UTF-8 file, without line ends and byte-order mark.

    Args:
      path: path of the file, gzipped if its name ends in .gz.

    Yields:
      (line number from 1, line).

    Raises:
      ValueError: the file is not UTF-8 or its gzip is damaged; the text names the line number.
    """
    number = 0
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidFile(
                f"{path}:{number}: not UTF-8 ({error.reason}): save it as UTF-8"
            ) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidFile(f"{path}: damaged gzip after line {number} ({error})") from error


def json_rows(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads the numbered objects of a JSONL file, without checking their fields.

    Args:
      path: path of the file, gzipped if its name ends in .gz.

    Yields:
      (line number from 1, object).

    Raises:
      ValueError: a line is malformed; the text names file and line number.
    """
    for number, text in lines(path):
        text = text.removeprefix("\ufeff")  # a byte-order mark between concatenated files
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidFile(f"{path}:{number}: malformed JSON ({error})") from error
        if not isinstance(row, dict):
            raise InvalidFile(f"{path}:{number}: {type(row).__name__}, needs an object with fields")
        yield number, row


def permutation(rows: int, *words: int) -> np.ndarray:
    """Computes a pseudo-random order of `rows` indices, a pure function of its arguments.

    NumPy guarantees the raw bits of a bit generator for all versions, but not the algorithm of
    `Generator.permutation`. The raw bits are sorted here, so that an exact resume survives an
    upgrade.

    Args:
      rows: number of indices.
      *words: non-negative integers that select the permutation, e.g. seed and epoch.

    Returns:
      int64 [rows], each of 0 … rows−1 once.

    >>> permutation(6, 0, 1).tolist()
    [3, 4, 2, 1, 5, 0]
    """
    bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(rows)
    return np.argsort(bits, kind="stable")


def chosen(rows: list[Any], max_examples: int | None) -> list[Any]:
    """Chooses at most `max_examples` rows, in their original order.

    The choice is the same at every call, a smaller choice is part of a larger one, and the rows are
    spread over the file: translation corpora are often sorted by length, so that the head of the
    file is not representative.

    Args:
      rows: all rows.
      max_examples: number of rows to keep; None keeps all.
    """
    if max_examples is None or max_examples >= len(rows):
        return rows
    return [rows[i] for i in sorted(permutation(len(rows), 0)[:max_examples].tolist())]


def configured_rows(
    file: str,
    fields: Sequence[str],
    directory: str | None = None,
    columns: Sequence[str] | None = None,
    lists: Sequence[str] = (),
    escapes: bool = False,
) -> list[dict[str, Any]]:
    """Reads the rows of a configured file.

    Args:
      file: path of the file, optionally followed by a slice of its rows: `train.jsonl[:-500]`.
      fields, columns, lists, escapes: as in `read_rows`.
      directory: folder of relative paths, see `resolved`.

    Returns:
      One dictionary per row.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no row is left, or a line is malformed.
    """
    match = _SLICE.match(file)
    start, stop = (None if x is None else int(x) for x in match.group("start", "stop"))
    path = resolved(match["path"], directory)
    rows = read_rows(path, fields, columns, lists, escapes)[start:stop]
    if not rows:
        raise InvalidFile(f"data file {file} has no rows")
    return rows


def files_source(
    files: Mapping[str, str],
    fields: Sequence[str],
    directory: str | None = None,
    columns: Sequence[str] | None = None,
    max_examples: int | None = None,
    escapes: bool = False,
) -> Any:
    """Builds a seqio data source over local files.

    Args:
      files: path of the file of each split, see `configured_rows`. `train.jsonl[:-500]` and
        `train.jsonl[-500:]` make a validation split for a data set without one.
      fields: names of the fields to read.
      directory: folder of relative paths, see `resolved`.
      columns: names of the columns of TSV files whose first line does not hold them.
      max_examples: number of training rows to use, see `chosen`; None uses all.
      escapes: as in `read_rows`.
    """

    def rows_of(split: str) -> list[dict[str, Any]]:
        rows = configured_rows(files[split], fields, directory, columns, escapes=escapes)
        return chosen(rows, max_examples if split == "train" else None)

    return rows_source(rows_of, fields, tuple(files))


def rows_source(rows_of: Any, fields: Sequence[str], splits: Sequence[str]) -> Any:
    """Builds a seqio data source over rows from a Python function.

    Args:
      rows_of: function of the name of a split to its rows (dictionaries of text).
      fields: names of the fields of a row.
      splits: names of the splits.
    """

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed  # the pipeline determines the order
        rows = rows_of(split)
        for number, row in enumerate(rows):
            for field in fields:
                check_encodes(row[field], f"split {split!r}, row {number}: field {field!r}")
        columns = {field: tf.constant([row[field] for row in rows], tf.string) for field in fields}
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(dataset_fn, splits=splits)


def tfds_source(name: str, splits: Mapping[str, str], max_examples: int | None = None) -> Any:
    """Builds a seqio data source over TFDS, read in file order.

    Args:
      name: data set, configuration and version, e.g. `wmt14_translate/de-en:1.0.0`.
      splits: TFDS split or slice of each split.
      max_examples: number of training rows to use: the first ones, as TFDS shuffles when it writes
        its files; None uses all.

    Returns:
      A source that raises FileNotFoundError when it is read and TFDS cannot provide the data.
    """
    source = seqio.TfdsDataSource(name, splits=dict(splits))

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed
        try:
            dataset = source.get_dataset(split, shuffle=False)
        except Exception as error:  # TFDS raises a dozen types for missing data and no network
            cause = str(error).strip().splitlines() or [type(error).__name__]
            raise MissingFile(
                f"TFDS has no {name} here ({cause[0]}): prepare it with `tfds build "
                f"{name.split(':')[0]}`, or give local `files` to the task"
            ) from error
        return dataset.take(max_examples) if max_examples and split == "train" else dataset

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(splits))


def provider_source(provider: str, max_examples: int | None = None) -> Any:
    """Builds a seqio data source over the texts of a registered seqio task or mixture.

    Args:
      provider: name of the task or mixture.
      max_examples: number of training rows to use, the first ones; None uses all.

    Raises:
      ValueError: neither registry has the name; while reading, the task keeps no texts.
    """
    try:
        registered = seqio.get_mixture_or_task(provider)
    except ValueError as error:
        raise InvalidValue(
            f"seqio has no task or mixture {provider!r}: import the module that registers it in "
            "the gin file, and allow that with --allow_module"
        ) from error

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        del shuffle_files, seed
        # A mixture draws components at random: a fixed seed makes every start the same.
        settings = {"sequence_length": None, "split": split, "shuffle": False, "seed": 0}
        if isinstance(registered, seqio.Mixture):
            settings |= {"num_epochs": 1, "copy_pretokenized": True}
        dataset = registered.get_dataset(**settings)
        if not set(PRETOKENIZED) <= set(dataset.element_spec):
            raise InvalidFile(
                f"seqio's {provider} keeps no {PRETOKENIZED[0]}: its tokenize step needs "
                "copy_pretokenized=True"
            )
        dataset = dataset.map(lambda row: {field: row[field] for field in PRETOKENIZED})
        return dataset.take(max_examples) if max_examples and split == "train" else dataset

    return seqio.FunctionDataSource(dataset_fn, splits=tuple(registered.splits))
