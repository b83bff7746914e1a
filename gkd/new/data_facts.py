"""Looks at a data file: its columns, its rows, and the lengths of its texts in tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from gkd.errors import InvalidFile, MissingFile, MissingPackage
from gkd.tables import fields
from gkd.tables.delimited import TsvFormat
from gkd.tables.rows import placed_rows
from gkd.tables.text_files import resolved

MEASURED_ROWS = 5000  # whose lengths are measured
PERCENTILE = 99
_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The texts of a data file.

    Attributes:
      rows: number of rows.
      inputs, targets: texts of the first rows, `MEASURED_ROWS` at most.
    """

    rows: int
    inputs: tuple[str, ...]
    targets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths of texts in tokens, with the end-of-sequence token.

    Attributes:
      median, percentile, longest: lengths; the second holds `PERCENTILE` percent of the texts.
    """

    median: int
    percentile: int
    longest: int

    @property
    def limit(self) -> int:
        """The next multiple of 8 that holds all but the longest texts.

        >>> Lengths(median=10, percentile=17, longest=400).limit
        24
        """
        return -(-self.percentile // _MULTIPLE) * _MULTIPLE


def columns(path: str, form: TsvFormat) -> list[str]:
    """Lists the fields of the first row of a data file, nested ones by dots.

    Args:
      path: path of the file, relative to GKD_DATA as in task files.
      form: format of CSV and TSV files.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is malformed or has no rows.
    """
    row = next(iter(placed_rows(resolved(path), form)), None)
    if row is None:
        raise InvalidFile(f"data file {path} has no rows")
    return list(fields.paths(row[1]))


def read_pairs(path: str, input_field: str, target_field: str, form: TsvFormat) -> Pairs:
    """Counts the rows of a data file and reads the texts of the first ones.

    Args:
      path: path of the file, relative to GKD_DATA as in task files.
      input_field, target_field: names of the fields; the target may be a list of references.
      form: format of CSV and TSV files.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is malformed, has no rows or lacks a field.
    """
    inputs, targets, rows = [], [], 0
    for where, row in placed_rows(resolved(path), form, (input_field, target_field)):
        rows += 1
        if rows <= MEASURED_ROWS:
            inputs.append(fields.text_of(row, input_field, where))
            targets.append(fields.references_of(row, target_field, where)[0])
    if not rows:
        raise InvalidFile(f"data file {path} has no rows")
    return Pairs(rows, tuple(inputs), tuple(targets))


def load_vocabulary(name: str) -> tuple[Any, str]:
    """Loads the vocabulary of a checkpoint, if it is there.

    Args:
      name: path of a folder with a tokenizer, or the name of a model on the Hugging Face Hub.

    Returns:
      (the vocabulary, ""), or (None, the reason why there is none).
    """
    from gkd.vocabularies import vocabularies  # imports TensorFlow, which takes seconds

    try:
        return vocabularies.t5(name), ""
    except (MissingFile, MissingPackage) as error:
        return None, str(error)


def measure(vocabulary: Any, texts: Sequence[str]) -> Lengths:
    """Measures texts in tokens.

    Args:
      vocabulary: a seqio vocabulary.
      texts: one text or more.
    """
    from gkd.vocabularies.token_rows import encode_targets

    lengths = sorted(map(len, encode_targets(vocabulary, texts)))
    last = len(lengths) - 1
    return Lengths(
        lengths[last // 2], lengths[-(-last * PERCENTILE // 100)], lengths[-1]
    )  # fmt: skip
