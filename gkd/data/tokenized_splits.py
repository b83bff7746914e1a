"""The token ids of all rows of a split, read once and kept in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json

import numpy as np

from gkd.data.sources import REFERENCES
from gkd.data.task_spec import TaskSpec
from gkd.errors import InvalidValue
from gkd.vocabularies.white_space import rule_of

_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class TokenColumn:
    """A feature of all rows of a split; row i's tokens are tokens[offsets[i] : offsets[i + 1]].

    Attributes:
      tokens: unsigned integers, the rows end to end, each whole (see `token_rows`).
      offsets: int64 [rows + 1].
      texts: the texts before tokenisation, if they were kept.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    texts: tuple[str, ...] = ()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return np.diff(self.offsets)


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """All rows of a split, tokenised.

    Attributes:
      columns: the task's features by name, in the order of `BATCH_COLUMNS`.
      empty: bool [rows], true where a text of the row is empty.
      references: several references of each row, the target text first; none where every row has
        one, or the texts were not kept.
    """

    columns: dict[str, TokenColumn]
    empty: np.ndarray
    references: tuple[tuple[str, ...], ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.empty)

    def fingerprint(self) -> str:
        """A hash of every token: two splits with the same one give the same batches."""
        digest = hashlib.blake2b(digest_size=16)
        for column in self.columns.values():
            digest.update(np.ascontiguousarray(column.tokens))
            digest.update(np.ascontiguousarray(column.offsets))
        digest.update(np.ascontiguousarray(self.empty))
        return digest.hexdigest()


def tokenized_split(
    task: TaskSpec, split: str, texts: bool = False, max_examples: int | None = None
) -> TokenizedSplit:
    """Reads and tokenises a split of a task.

    The source's rows go through the task's texts and vocabulary in blocks. The tokens are those of
    `task.task.get_dataset`, which works row by row and takes eight times as long.

    Args:
      task: the task.
      split: the name of one of its splits.
      texts: keep the texts as well.
      max_examples: the number of rows to read, from the first; None reads all.

    Returns:
      The rows in the source's order.

    Raises:
      InvalidValue: the task has no such split, or the split has no rows.
    """
    if split not in task.splits:
        known = ", ".join(task.splits)
        raise InvalidValue(f"task {task.name} has no split {split!r}; it has {known}")
    dataset = task.task.source.get_dataset(split, shuffle=False)
    if max_examples is not None:
        dataset = dataset.take(max_examples)
    features, empty = task.features, []
    references: list[tuple[str, ...]] = []
    fit = rule_of(task.vocabulary).fit if texts else str
    kept: dict[str, list[str]] = {name: [] for name in features}
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in features}
    lengths: dict[str, list[np.ndarray]] = {name: [np.zeros(1, np.int64)] for name in features}
    for block in dataset.batch(_ROWS_AT_ONCE).map(task.texts).as_numpy_iterator():
        for name in features:
            column = [text.decode("utf-8") for text in block[name]]
            values, sizes = _end_to_end(task.encode(name, column), task.vocabulary.vocab_size)
            tokens[name].append(values)
            lengths[name].append(sizes)
            kept[name] += column if texts else []
        if texts and REFERENCES in block:
            rows = zip(block["targets"], block[REFERENCES], strict=True)
            references += [
                (target.decode(), *map(fit, json.loads(several or "[]")[1:]))
                for target, several in rows
            ]
        empty.append(block["empty"])
    if not empty:
        raise InvalidValue(f"task {task.name}: split {split!r} has no rows")
    columns = {
        name: TokenColumn(
            np.concatenate(tokens[name]),
            np.cumsum(np.concatenate(lengths[name])),
            tuple(kept[name]),
        )
        for name in features
    }
    return TokenizedSplit(columns, np.concatenate(empty), tuple(references))


def _end_to_end(rows: list[list[int]], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Joins the tokens of rows, and returns their lengths."""
    small = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(itertools.chain.from_iterable(rows), small, lengths.sum()), lengths
