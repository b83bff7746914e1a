"""Reads precomputed top-k log-probabilities of a teacher, for offline distillation."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.tables.json_files import json_rows

_FIELDS = ("index", "sample", "target_tokens", "target_top_ids", "target_top_log_probs")
_ROUNDING = 1e-4  # greatest excess of a stored probability over 1


@dataclasses.dataclass(frozen=True)
class OfflineTeacher:
    """The K most probable ids of a teacher at every token of a split's targets.

    Attributes:
      path: path of the file.
      ids: int32 [rows, T, K]; 0 … K−1 after the end of a target.
      log_probs: float32 [rows, T, K], over `valid_ids` at temperature 1; −log K after the end.
      target_tokens: int32 [rows, T], the targets that were scored, padded after the end.
    """

    path: str
    ids: Int[np.ndarray, "split target_length k"]
    log_probs: Float[np.ndarray, "split target_length k"]
    target_tokens: Int[np.ndarray, "split target_length"]

    @property
    def k(self) -> int:
        """K, the number of ids per token."""
        return self.ids.shape[2]

    @classmethod
    def read(
        cls,
        path: str,
        target_length: int,
        rows: int | None = None,
        vocabulary_size: int | None = None,
        padding_id: int = 0,
    ) -> OfflineTeacher:
        """Reads the output of `infer --score --top_k_log_probs K`; of several samples the first.

        Args:
          path: path of the JSONL file (or gzipped, .jsonl.gz).
          target_length: T of the run in tokens; longer targets are truncated as in the run.
          rows: number of rows of the split, to be checked; None skips the check.
          vocabulary_size: V of the student, to be checked; None skips the check.
          padding_id: id after the end of targets in the run's batches.

        Returns:
          The teacher's ids and log-probabilities.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is damaged, has no top-k, or lacks a line; the text names the line.
        """
        if target_length < 1:
            raise InvalidValue(f"target_length={target_length} must be at least 1")
        if not os.path.isfile(path):
            raise MissingFile(
                f"TEACHER_TOP_K_FILE {path} does not exist: write it with infer --task … --score "
                "--top_k_log_probs K"
            )
        tokens, ids, log_probs = [], [], []
        for where, row in json_rows(path):
            if _check_fields(row, where)["sample"] > 0:
                continue
            if row["index"] != len(tokens):
                raise InvalidFile(
                    f"{where}: index is {row['index']}, but {len(tokens)} comes next: lines are "
                    "missing, or out of order; write the file again"
                )
            k = ids[0].shape[1] if ids else None
            scored = _scores(row, where, k, vocabulary_size)
            for column, values in zip((tokens, ids, log_probs), scored, strict=True):
                column.append(values[:target_length])
        if not tokens:
            raise InvalidFile(f"{path} has no rows")
        if rows is not None and len(tokens) != rows:
            raise InvalidFile(
                f"{path} has {len(tokens)} rows, the split {rows}: it was written for another "
                "split or other rows of it, or is not complete"
            )
        return cls(path, *_padded(tokens, ids, log_probs, target_length, padding_id))

    def rows(
        self,
        row_numbers: Int[np.ndarray, " batch"],
        decoder_target_tokens: Int[np.ndarray, "batch length"],
    ) -> tuple[
        Int[np.ndarray, "batch target_length k"], Float[np.ndarray, "batch target_length k"]
    ]:
        """Returns the teacher's ids and log-probabilities for some rows.

        Args:
          row_numbers: [B], number of each row in the split, as in batches.
          decoder_target_tokens: [B, T], target tokens of the same rows, T as long as theirs.

        Returns:
          ids int32 [B, T, K] and log-probabilities float32 [B, T, K].

        Raises:
          ValueError: the file lacks a row, or was written for other target tokens.
        """
        count, length = self.target_tokens.shape
        outside = row_numbers[(row_numbers < 0) | (row_numbers >= count)]
        if len(outside):
            raise InvalidFile(
                f"{self.path} has {count} rows, the batch needs row {outside[0]}: it was written "
                "for another split, or is not complete"
            )
        wanted = decoder_target_tokens.shape[1]
        if wanted > length:
            raise InvalidValue(
                f"{self.path} was read for targets of {length} tokens, the batch has {wanted}"
            )
        other = (self.target_tokens[row_numbers, :wanted] != decoder_target_tokens).any(axis=1)
        if other.any():
            raise InvalidFile(
                f"{self.path}: row {row_numbers[other][0]} has other target tokens than the batch: "
                "the file was written from another data set, order or vocabulary, or with a "
                "max_length below the run's TARGET_LENGTH"
            )
        return self.ids[row_numbers, :wanted], self.log_probs[row_numbers, :wanted]


def _check_fields(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    missing = [name for name in _FIELDS if name not in row]
    if missing:
        raise InvalidFile(
            f"{where}: no field {missing[0]!r}: write the file with infer --score "
            "--top_k_log_probs K"
        )
    for name in ("index", "sample"):
        if type(row[name]) is not int or row[name] < 0:
            raise InvalidFile(f"{where}: {name} is {row[name]!r}, needs a number from 0")
    return row


def _scores(row, where, k, vocabulary_size):
    """Checks a line: tokens int32 [t], ids int32 [t, K], log-probabilities float32 [t, K]."""
    tokens = _array(row, "target_tokens", "i", 1, where)
    ids = _array(row, "target_top_ids", "i", 2, where)
    log_probs = _array(row, "target_top_log_probs", "if", 2, where)
    wanted = (len(tokens), k or ids.shape[1])
    for name, array in (("target_top_ids", ids), ("target_top_log_probs", log_probs)):
        if array.shape != wanted:
            raise InvalidFile(
                f"{where}: {name} has shape {array.shape}, needs {wanted}: one row per target "
                "token, the same number of ids in all lines"
            )
    mass = np.exp(log_probs).sum(axis=1)
    if not np.all(mass <= 1 + _ROUNDING):  # nor where it is NaN
        raise InvalidFile(f"{where}: target_top_log_probs hold more than probability 1")
    size = vocabulary_size or 1 << 31
    if min(tokens.min(), ids.min()) < 0 or max(tokens.max(), ids.max()) >= size:
        raise InvalidFile(f"{where}: an id is not in 0 … {size - 1}: is it the same vocabulary?")
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise InvalidFile(f"{where}: target_top_ids name an id twice at one token")
    return tokens, ids, log_probs


def _array(row, name, kinds, dimensions, where):
    """Parses a field as a non-empty array."""
    try:
        array = np.array(row[name])
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.dtype.kind not in kinds or array.ndim != dimensions or not array.size:
        shape = "a list of numbers" if dimensions == 1 else "lists, of one length, of numbers"
        raise InvalidFile(f"{where}: {name} is not {shape}: the file is damaged")
    return array


def _padded(tokens, ids, log_probs, length, padding_id):
    """Pads rows to ids [rows, T, K], log-probabilities [rows, T, K] and tokens [rows, T]."""
    rows, k = len(tokens), ids[0].shape[1]
    all_tokens = np.full((rows, length), padding_id, np.int32)
    all_ids = np.tile(np.arange(k, dtype=np.int32), (rows, length, 1))
    all_log_probs = np.full((rows, length, k), -math.log(k), np.float32)
    for i, row in enumerate(tokens):
        all_tokens[i, : len(row)] = row
        all_ids[i, : len(row)] = ids[i]
        all_log_probs[i, : len(row)] = log_probs[i]
    return all_ids, all_log_probs, all_tokens
