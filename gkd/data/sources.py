"""Makes seqio data sources of rows: from data files, Python functions, TFDS or seqio's tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.tables.delimited import TsvFormat
from gkd.tables.fields import check_encodes
from gkd.tables.rows import read_rows
from gkd.tables.text_files import resolved
from gkd.tables.tfds_availability import PAGE, check_available, first_line
from gkd.vocabularies.tensorflow_host import seqio, tf

# In a row of several references, a column with all of them as a JSON list.
REFERENCES = "gkd:references"
PRETOKENIZED = ("inputs_pretokenized", "targets_pretokenized")
_SLICE = re.compile(r"(?P<path>.*?)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?", re.DOTALL)


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
    form: TsvFormat | None = None,
    lists: Sequence[str] = (),
    references: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Reads the rows of a configured file.

    Args:
      file: path of the file or files, see `rows.data_files`, optionally followed by a slice of the
        rows: `train.jsonl[:-500]`.
      fields: names of the fields that hold texts.
      directory: folder of relative paths, see `resolved`.
      form: format of CSV and TSV files.
      lists, references: names of further fields, see `rows.read_rows`.

    Returns:
      One dictionary per row.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: no row is left, or a row is malformed.
    """
    match = _SLICE.fullmatch(file)
    start, stop = (None if x is None else int(x) for x in match.group("start", "stop"))
    path = resolved(match["path"], directory)
    rows = read_rows(path, fields, lists, references, form)[start:stop]
    if not rows:
        raise InvalidFile(f"data file {file} has no rows")
    return rows


def files_source(
    files: Mapping[str, str],
    fields: Sequence[str],
    directory: str | None = None,
    form: TsvFormat | None = None,
    max_examples: int | None = None,
    target_field: str | None = None,
) -> Any:
    """Builds a seqio data source over local files.

    Args:
      files: path of the file of each split, see `configured_rows`. `train.jsonl[:-500]` and
        `train.jsonl[-500:]` make a validation split for a data set without one.
      fields: names of the fields to read.
      directory: folder of relative paths, see `resolved`.
      form: format of CSV and TSV files.
      max_examples: number of training rows to use, see `chosen`; None uses all.
      target_field: the one of the fields that may hold a list of references. The first is the text
        of the field; all of them are the column `REFERENCES` of splits with such a list.
    """
    targets = [field for field in fields if field == target_field]
    texts = [field for field in fields if field != target_field]

    def rows_of(split: str) -> list[dict[str, Any]]:
        rows = configured_rows(files[split], texts, directory, form, references=targets)
        rows = chosen(rows, max_examples if split == "train" else None)
        several = any(len(row[field]) > 1 for row in rows for field in targets)
        for row in rows:
            for field in targets:
                if several:
                    row[REFERENCES] = json.dumps(row[field])
                row[field] = row[field][0]
        return rows

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
        names = [*fields, *([REFERENCES] if rows and REFERENCES in rows[0] else [])]
        columns = {name: tf.constant([row[name] for row in rows], tf.string) for name in names}
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
        check_available(name)
        try:
            dataset = source.get_dataset(split, shuffle=False)
        except Exception as error:  # TFDS raises a dozen types for missing data
            raise MissingFile(
                f"TFDS has no {name} here ({first_line(error)}): prepare it with `tfds build "
                f"{name.split(':')[0]}`, or give local `files` to the task; see {PAGE}"
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
