"""The sources that tasks read: local files in several formats, or data sets of TFDS."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.data import sources
from gkd.data.task_spec import check_max_examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsData:
    """A data set of TFDS.

    Attributes:
      name: name, configuration and version: `xsum:1.1.0`.
      splits: TFDS split of each split of the task; None is train, validation and test.
    """

    name: str
    splits: Mapping[str, str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TsvFormat:
    """The format of TSV files.

    Attributes:
      columns: names of the columns, if the first line of the files does not hold them.
      escapes: replace \\n and \\t in cells by a newline and a tab.
    """

    columns: Sequence[str] | None = None
    escapes: bool = False


def task_source(
    files: Mapping[str, str] | None,
    fields: Sequence[str],
    directory: str | None,
    tsv: TsvFormat | None,
    tfds: TfdsData | None,
    max_examples: int | None,
) -> Any:
    """Makes the source of a task's rows: local files, or else a data set of TFDS.

    Args:
      files: path of each split's file, see `sources.files_source`; None reads TFDS.
      fields: the fields wanted.
      directory: where relative paths start.
      tsv: the format of TSV files; None: their first line holds the columns' names.
      tfds: the TFDS data set; None where `files` are given.
      max_examples: number of training rows to use, the first ones; None uses all.

    Returns:
      A seqio data source.
    """
    check_max_examples(max_examples)
    if files:
        tsv = tsv or TsvFormat()
        return sources.files_source(
            files, fields, directory, tsv.columns, max_examples, tsv.escapes
        )
    splits = tfds.splits or {split: split for split in ("train", "validation", "test")}
    return sources.tfds_source(tfds.name, splits, max_examples)
