"""Host-side batches: endless, shuffled and resumable for training; finite, in order for evaluation.

A split is tokenised once, through its seqio task, and kept in memory. The data position is then one
number, so that a resume is exact and immediate, and every host takes its rows of the same global
batch, however many hosts there are. A batch has one array for each feature of the task.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from gkd.data.length_buckets import BatchOrder, Shapes, choose_shapes
from gkd.data.part_lengths import (
    BATCHES,
    PartLayout,
    PartSizes,
    Profile,
    choose_layout,
    parts_by_field,
    parts_of,
)
from gkd.data.sources import permutation
from gkd.data.task_spec import BATCH_COLUMNS
from gkd.data.tasks import TaskSpec
from gkd.data.tokenized_splits import TokenizedSplit, tokenized_split
from gkd.errors import InvalidFile, InvalidValue
from gkd.vocabularies.token_rows import shortened_prompt

_STATE_FORMAT = 1


def _batch(
    data: TokenizedSplit, rows: np.ndarray, size: int, lengths: dict[str, int], vocabulary: Any
) -> dict[str, Any]:
    """Pads the given rows to arrays of `size` rows; the rows after them are padding of weight 0."""
    count = len(rows)
    arrays, cuts = {}, {}
    for name, length in lengths.items():
        column = data.columns[name]
        tokens = np.full((size, length), vocabulary.pad_id, np.int32)  # [B, S], [B, T]
        for i, row in enumerate(rows):
            whole = column.tokens[column.offsets[row] : column.offsets[row + 1]]
            if name != "targets":
                whole = shortened_prompt(vocabulary, whole, length)
            # A truncated target did not end there, and the student must not learn that it did.
            tokens[i, : min(len(whole), length)] = whole[:length]
        arrays[BATCH_COLUMNS[name]] = tokens
        cuts[f"{name}_cut"] = int((column.lengths[rows] > length).sum())
    weights = np.zeros(size, np.float32)  # [B]
    weights[:count] = ~data.empty[rows]
    numbers = np.full(size, -1, np.int64)  # [B]
    numbers[:count] = rows
    return {
        **arrays,
        "example_weights": weights,
        "rows": numbers,
        **cuts,
        "empty_examples": int(data.empty[rows].sum()),
    }


def _check_sizes(
    batch_size: int, lengths: dict[str, int], own_rows: np.ndarray | None
) -> np.ndarray:
    """Checks the sizes of a batch; returns this host's rows of it."""
    named = {f"{name.removesuffix('s')}_length": length for name, length in lengths.items()}
    for name, value in {"batch_size": batch_size, **named}.items():
        if value < 1:
            raise InvalidValue(f"{name}={value} must be at least 1")
    own = np.arange(batch_size) if own_rows is None else own_rows
    if not len(own) or (np.diff(own) < 1).any() or own[0] < 0 or own[-1] >= batch_size:
        raise ValueError(f"own_rows are {own.tolist()}: rows of a batch of {batch_size}, ascending")
    return own


class TrainingBatches:
    """An endless iterator of batches whose position can be saved and restored exactly.

    Epochs follow each other without a gap: with N rows, global example number n is row n mod N of
    epoch n div N's permutation, so every row comes once an epoch whatever the batch size. Batches
    of several lengths come in the order of a `BatchOrder`.
    """

    def __init__(
        self,
        data: TokenizedSplit,
        vocabulary: Any,
        batch_size: int,
        lengths: dict[str, int],
        seed: int,
        shuffle: bool,
        own_rows: np.ndarray,
        shapes: Shapes | None = None,
        parts: PartSizes | None = None,
    ):
        """Starts before the first batch; `training_batches` explains the arguments."""
        self._data = data
        self._vocabulary = vocabulary
        self._batch_size = batch_size
        self._lengths = lengths
        self._own_rows = own_rows
        self._order = {
            "format": _STATE_FORMAT,
            "rows": data.rows,
            "seed": seed,
            "shuffle": shuffle,
            "data": data.fingerprint(),
        }
        self._grouped = None
        if shapes is not None and len(shapes.lengths) > 1:
            self._grouped = BatchOrder(shapes, batch_size, self._row, seed)
            self._order["batch_size"] = batch_size  # its batches are those of one size
            self._order["lengths"] = [list(lengths.values()) for lengths in shapes.lengths]
        self._position = 0
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))
        self._layout = None if parts is None else self._choose_layout(parts)

    def _choose_layout(self, parts: PartSizes) -> PartLayout | None:
        """Chooses the layout for the first epoch's batches, whatever was trained on already."""
        size, rows = self._batch_size, self._data.rows
        count = min(rows // size, BATCHES)
        batches = np.array([self._row(number) for number in range(count * size)])
        prompts = {name: most for name, most in self._lengths.items() if name != "targets"}
        lengths = {name: self._data.columns[name].lengths for name in prompts}
        return choose_layout(
            batches.reshape(count, size), lengths, prompts, parts.parts, parts.shards
        )

    def __iter__(self) -> TrainingBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        lengths = self._lengths
        if self._grouped is None:
            numbers = range(self._position, self._position + self._batch_size)
            rows = np.array([self._row(number) for number in numbers], np.int64)
        else:
            lengths, rows = self._grouped.batch(self._position // self._batch_size)
        self._position += self._batch_size
        profile, laid_out = {}, {}
        if self._layout is not None:
            places, profile = self._layout.arrange(self._prompt_lengths(rows))
            rows, own = rows[places], places[self._own_rows]
            laid_out = parts_by_field(profile, lengths, self._layout.shards)
            laid_out["places"] = own.astype(np.int32)
        own = rows[self._own_rows]
        batch = _batch(self._data, own, len(own), lengths, self._vocabulary)
        return batch | laid_out | self._padding(rows, lengths, profile)

    def _prompt_lengths(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: np.minimum(self._data.columns[name].lengths[rows], most)
            for name, most in self._lengths.items()
            if name != "targets"
        }

    def _padding(
        self, rows: np.ndarray, lengths: dict[str, int], profile: Profile
    ) -> dict[str, int]:
        """Counts the positions of a batch of all hosts, and those that hold padding."""
        each = [
            np.mean(profile[name]) if name in profile else length
            for name, length in lengths.items()
        ]
        positions = round(len(rows) * sum(each))
        real = sum(
            int(np.minimum(self._data.columns[name].lengths[rows], length).sum())
            for name, length in lengths.items()
        )
        return {"positions": positions, "padding": positions - real}

    def _row(self, number: int) -> int:
        epoch, place = divmod(number, self._data.rows)
        if not self._order["shuffle"]:
            return place
        if self._epoch[0] != epoch:
            self._epoch = epoch, permutation(self._data.rows, self._order["seed"], epoch)
        return int(self._epoch[1][place])

    @property
    def rows(self) -> int:
        """Rows of the split, which is the number of examples per epoch."""
        return self._data.rows

    def count_unknown(self) -> tuple[int, int]:
        """Counts the unknown tokens of the split's targets and all of their tokens, without EOS."""
        tokens, unknown_id = self._data.columns["targets"].tokens, self._vocabulary.unk_id
        unknown = 0 if unknown_id is None else int((tokens == unknown_id).sum())
        return unknown, len(tokens) - self._data.rows

    def count_cuts(self) -> dict[str, int]:
        """Counts the rows of the split that are truncated or empty."""
        cuts = {
            f"{name.replace('_', ' ')} cut": int((self._data.columns[name].lengths > length).sum())
            for name, length in self._lengths.items()
        }
        return {**cuts, "empty examples": int(self._data.empty.sum())}

    def state(self) -> bytes:
        """Returns the position after the last batch: a small JSON text, the same on every host."""
        return json.dumps({**self._order, "position": self._position}, sort_keys=True).encode()

    def restore(self, state: bytes) -> None:
        """Continues from a saved position: the next batches are those that followed it.

        Args:
          state: bytes that `state()` returned, in this process or another; the number of hosts and
            the batch size may have changed since, the data, seed and shuffling may not.

        Raises:
          InvalidFile: the state is damaged or belongs to other data, another seed or shuffling.
        """
        try:
            saved = json.loads(state)
            position = saved.pop("position")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise InvalidFile(f"the data position is damaged ({error})") from error
        if type(position) is not int or position < 0:
            raise InvalidFile(f"the data position is damaged (position {position!r})")
        for name in dict.fromkeys(("lengths", *self._order, *saved)):
            then, now = saved.get(name), self._order.get(name)
            if then != now:
                setting = " (LENGTH_BUCKETS, or None for one)" if name == "lengths" else ""
                raise InvalidFile(
                    f"the data position belongs to another order: {name}{setting} was {then!r}, "
                    f"now {now!r}; restore the data and settings it was saved with, or start anew"
                )
        self._position = position


def training_batches(
    task: TaskSpec,
    split: str,
    batch_size: int,
    input_length: int,
    target_length: int,
    seed: int,
    shuffle: bool = True,
    own_rows: np.ndarray | None = None,
    buckets: str | Sequence[int] | None = None,
    buckets_targets: bool = False,
    part_sizes: PartSizes | None = None,
) -> TrainingBatches:
    """Makes endless batches of a split, each epoch in another order.

    Args:
      task: the task.
      split: the name of one of its splits.
      batch_size: B, rows of a batch over all hosts.
      input_length: S, tokens of an input. A longer one is truncated, see `shortened_prompt`.
      target_length: T, tokens of a target. A longer one is truncated and has no EOS.
      seed: selects the order, non-negative.
      shuffle: permute the rows of each epoch; false keeps the source's order.
      own_rows: this host's rows of each batch, ascending (`mesh.own_rows`); None is all.
      buckets: "parts" lays out the rows of every batch in parts of similar length, each encoded at
        its own; lengths of inputs form batches of rows of similar length; "batches" chooses these
        lengths by the data; None encodes all padding.
      buckets_targets: with batches of similar length, group by the length of targets too.
      part_sizes: the parts that a batch can be laid out in; None is those of a single device.

    Returns:
      An iterator of dictionaries, R = own rows: encoder_input_tokens int32 [R, S],
      decoder_target_tokens int32 [R, T], of a task with the feature `teacher_inputs`
      teacher_encoder_input_tokens int32 [R, S'], example_weights float32 [R] (0 for a row with an
      empty text), rows int64 [R] (each row's number in the split; −1 for padding), and the integers
      inputs_cut, targets_cut, (teacher_inputs_cut,) and empty_examples of this host's rows, padding
      and positions (tokens with the padding that is computed) of all hosts'. In batches of similar
      length S, T and S' are those of the batch. In parts there are also places int32 [R] (the row's
      number in the batch before it was laid out), and input_parts (and teacher_input_parts), a
      `RowParts` or None.

    Raises:
      InvalidValue: a size is below 1, buckets are not ascending, the split has fewer rows than a
        batch, or every row is empty.
      ValueError: own_rows are not rows of a batch.
    """
    lengths = task.feature_lengths(input_length, target_length)
    own = _check_sizes(batch_size, lengths, own_rows)
    task.check_batch(batch_size)
    data = tokenized_split(task, split)
    if data.empty.all():
        raise InvalidValue(f"task {task.name}: all {data.rows} rows of split {split!r} are empty")
    if data.rows < batch_size:
        raise InvalidValue(
            f"task {task.name}: split {split!r} has {data.rows} rows, fewer than a batch of "
            f"{batch_size}, which would hold rows twice: lower BATCH_SIZE, or give more rows"
        )
    shapes = None
    if buckets not in (None, "parts") and shuffle:
        shapes = choose_shapes(
            {name: data.columns[name].lengths for name in lengths}, lengths,
            None if buckets == "batches" else buckets, buckets_targets,
        )  # fmt: skip
    return TrainingBatches(
        data=data,
        vocabulary=task.vocabulary,
        batch_size=batch_size,
        lengths=lengths,
        seed=seed,
        shuffle=shuffle,
        own_rows=own,
        shapes=shapes,
        parts=(part_sizes or PartSizes(parts_of(batch_size, 1))) if buckets == "parts" else None,
    )


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The batches of a split and its texts; text i belongs to row i of the concatenated batches.

    Attributes:
      batches: dictionaries as `training_batches` makes them. Only padding (at the end) weighs 0.
      inputs: the student's prompts as text.
      targets: the references as text, complete even where the tokens were truncated; of several
        the first.
      inputs_cut, targets_cut, empty_examples: counts; empty examples are left out of the rest.
      several: several references of each row, see `TokenizedSplit.references`.
    """

    batches: tuple[dict[str, Any], ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    inputs_cut: int
    targets_cut: int
    empty_examples: int
    several: tuple[tuple[str, ...], ...] = ()

    @property
    def references(self) -> tuple[str | tuple[str, ...], ...]:
        """The texts that metrics compare with: each row's target, or all of its references."""
        return self.several or self.targets


def evaluation_batches(
    task: TaskSpec,
    split: str,
    batch_size: int,
    input_length: int,
    target_length: int,
    max_examples: int | None = None,
    own_rows: np.ndarray | None = None,
) -> EvaluationSet:
    """Makes the batches of every row of a split, in order; rows of weight 0 fill the last batch.

    Args:
      task: the task.
      split: the name of one of its splits.
      batch_size: B, rows of a batch over all hosts.
      input_length: S, as in `training_batches`.
      target_length: T, as in `training_batches`.
      max_examples: the number of rows to use, from the first; None uses all.
      own_rows: as in `training_batches`. The texts and counts are those of all hosts.

    Returns:
      The batches of this host and the texts.

    Raises:
      InvalidValue: a size is below 1, or no example is left.
      ValueError: own_rows are not rows of a batch.
    """
    lengths = task.feature_lengths(input_length, target_length)
    own = _check_sizes(batch_size, lengths, own_rows)
    if max_examples is not None and max_examples < 1:
        raise InvalidValue(f"max_examples={max_examples} must be at least 1, or None for all rows")
    data = tokenized_split(task, split, texts=True, max_examples=max_examples)
    rows = np.flatnonzero(~data.empty)
    if not len(rows):
        raise InvalidValue(f"task {task.name}: all {data.rows} rows of split {split!r} are empty")
    batches = []
    for start in range(0, len(rows), batch_size):
        numbers = start + own
        mine = rows[numbers[numbers < len(rows)]]  # after the last example is padding
        batches.append(_batch(data, mine, len(own), lengths, task.vocabulary))
    inputs, targets = data.columns["inputs"], data.columns["targets"]
    return EvaluationSet(
        batches=tuple(batches),
        inputs=tuple(inputs.texts[i] for i in rows),
        targets=tuple(targets.texts[i] for i in rows),
        several=tuple(data.references[i] for i in rows) if data.references else (),
        inputs_cut=int((inputs.lengths[rows] > input_length).sum()),
        targets_cut=int((targets.lengths[rows] > target_length).sum()),
        empty_examples=int(data.empty.sum()),
    )
