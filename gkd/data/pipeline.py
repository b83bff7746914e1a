"""Host-side batches: endless, shuffled and resumable for training; finite, in order for evaluation.

A split is tokenised once, through its seqio task, and kept in memory. The position in it is then
two numbers, so a resume is exact and immediate, and every host cuts its rows out of the same global
batch, however many hosts there are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from typing import Any

import numpy as np

from gkd.data.permutation import permutation
from gkd.data.tasks import TaskSpec
from gkd.errors import InvalidFile, InvalidValue
from gkd.vocabularies import vocabularies

_STATE_FORMAT = 1
_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """All rows of a split, tokenised; row i's tokens are tokens[offsets[i] : offsets[i + 1]].

    Attributes:
      input_tokens, target_tokens: unsigned integers, rows one after the other, EOS included.
      input_offsets, target_offsets: int64 [rows + 1].
      empty: bool [rows], true where the input or the target text is empty.
      inputs, targets: the texts before tokenisation, if asked for.
    """

    input_tokens: np.ndarray
    input_offsets: np.ndarray
    target_tokens: np.ndarray
    target_offsets: np.ndarray
    empty: np.ndarray
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.empty)

    def fingerprint(self) -> str:
        """A hash of every token: two splits with the same one give the same batches."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (
            self.input_tokens, self.input_offsets, self.target_tokens, self.target_offsets,
            self.empty,
        ):  # fmt: skip
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def tokenized_split(
    task: TaskSpec, split: str, texts: bool = False, max_examples: int | None = None
) -> TokenizedSplit:
    """Run a split through its seqio task into memory.

    The source's rows go through the task's texts and vocabulary in blocks: the tokens are those of
    `task.task.get_dataset`, which works row by row and takes eight times as long.

    Args:
      task: the task.
      split: the name of one of its splits.
      texts: whether to keep the texts as well.
      max_examples: stop after so many rows; None reads all.

    Returns:
      The rows in the source's order.

    Raises:
      ValueError: if the task has no such split, or the split has no rows.
    """
    if split not in task.splits:
        known = ", ".join(task.splits)
        raise InvalidValue(f"task {task.name} has no split {split!r}; it has {known}")
    dataset = task.task.source.get_dataset(split, shuffle=False)
    if max_examples is not None:
        dataset = dataset.take(max_examples)
    columns: dict[str, list[str]] = {"inputs": [], "targets": []}
    tokens: dict[str, list[np.ndarray]] = {"inputs": [], "targets": []}
    lengths: dict[str, list[np.ndarray]] = {"inputs": [], "targets": []}
    empty = []
    for block in dataset.batch(_ROWS_AT_ONCE).map(task.texts).as_numpy_iterator():
        for name in columns:
            column = [text.decode("utf-8") for text in block[name]]
            values, sizes = _tokens(task.vocabulary, column)
            tokens[name].append(values)
            lengths[name].append(sizes)
            columns[name] += column if texts else []
        empty.append(block["empty"])
    if not empty:
        raise InvalidValue(f"task {task.name}: split {split!r} has no rows")
    offsets = {
        name: np.concatenate([[0], np.cumsum(np.concatenate(lengths[name]))]) for name in lengths
    }
    return TokenizedSplit(
        np.concatenate(tokens["inputs"]),
        offsets["inputs"],
        np.concatenate(tokens["targets"]),
        offsets["targets"],
        np.concatenate(empty),
        tuple(columns["inputs"]),
        tuple(columns["targets"]),
    )


def _tokens(vocabulary: Any, column: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a column of texts end to end, EOS after each, and their lengths."""
    rows = [[*row, vocabulary.eos_id] for row in vocabularies.encode_texts(vocabulary, column)]
    small = np.uint16 if vocabulary.vocab_size <= 1 << 16 else np.uint32
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.fromiter(itertools.chain.from_iterable(rows), small, lengths.sum()), lengths


def _batch(
    data: TokenizedSplit,
    rows: np.ndarray,
    size: int,
    input_length: int,
    target_length: int,
    eos: int,
) -> dict[str, Any]:
    """The named rows as padded arrays of `size` rows; those after them are padding, weight 0."""
    inputs = np.zeros((size, input_length), np.int32)  # [B, S]
    targets = np.zeros((size, target_length), np.int32)  # [B, T]
    weights = np.zeros(size, np.float32)  # [B]
    numbers = np.full(size, -1, np.int64)  # [B]
    numbers[: len(rows)] = rows
    inputs_cut = targets_cut = 0
    for i, row in enumerate(rows):
        tokens = data.input_tokens[data.input_offsets[row] : data.input_offsets[row + 1]]
        length = min(len(tokens), input_length)
        inputs[i, :length] = tokens[:length]
        if len(tokens) > input_length:
            inputs[i, -1] = eos  # the encoder has never seen an input that does not end
            inputs_cut += 1
        # A cut target has no EOS: the text did not end there, and must not be taught to.
        tokens = data.target_tokens[data.target_offsets[row] : data.target_offsets[row + 1]]
        length = min(len(tokens), target_length)
        targets[i, :length] = tokens[:length]
        targets_cut += len(tokens) > target_length
        weights[i] = not data.empty[row]
    return {
        "encoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "example_weights": weights,
        "rows": numbers,
        "inputs_cut": inputs_cut,
        "targets_cut": int(targets_cut),
        "empty_examples": int(data.empty[rows].sum()),
    }


def _check_sizes(
    batch_size: int, input_length: int, target_length: int, own_rows: np.ndarray | None
) -> np.ndarray:
    """This host's rows of a batch."""
    sizes = (("batch_size", batch_size), ("input_length", input_length))
    for name, value in (*sizes, ("target_length", target_length)):
        if value < 1:
            raise InvalidValue(f"{name}={value} must be at least 1")
    own = np.arange(batch_size) if own_rows is None else own_rows
    if not len(own) or (np.diff(own) < 1).any() or own[0] < 0 or own[-1] >= batch_size:
        raise ValueError(f"own_rows are {own.tolist()}: rows of a batch of {batch_size}, ascending")
    return own


class TrainingBatches:
    """An endless iterator of batches whose position can be saved and restored exactly.

    Epochs follow each other without a gap: with N rows, global example number n is row n mod N of
    epoch n div N's permutation, so every row comes once an epoch whatever the batch size.
    """

    def __init__(
        self,
        data: TokenizedSplit,
        eos: int,
        batch_size: int,
        input_length: int,
        target_length: int,
        seed: int,
        shuffle: bool,
        own_rows: np.ndarray,
        unknown: int | None = None,
    ):
        self._data = data
        self._unknown = unknown
        self._eos = eos
        self._batch_size = batch_size
        self._lengths = input_length, target_length
        self._own_rows = own_rows
        self._order = {
            "format": _STATE_FORMAT,
            "rows": data.rows,
            "seed": seed,
            "shuffle": shuffle,
            "data": data.fingerprint(),
        }
        self._position = 0
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __iter__(self) -> TrainingBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        numbers = (self._position + self._own_rows).tolist()
        rows = np.array([self._row(number) for number in numbers], np.int64)
        self._position += self._batch_size
        return _batch(self._data, rows, len(rows), *self._lengths, self._eos)

    def _row(self, number: int) -> int:
        epoch, place = divmod(number, self._data.rows)
        if not self._order["shuffle"]:
            return place
        if self._epoch[0] != epoch:
            self._epoch = epoch, permutation(self._data.rows, self._order["seed"], epoch)
        return int(self._epoch[1][place])

    @property
    def rows(self) -> int:
        """Rows of the split, so that jobs can speak of epochs."""
        return self._data.rows

    def count_unknown(self) -> tuple[int, int]:
        """How many tokens of the split's targets are unknown, and how many there are; no EOS."""
        tokens = self._data.target_tokens
        unknown = 0 if self._unknown is None else int((tokens == self._unknown).sum())
        return unknown, len(tokens) - self._data.rows

    def count_cuts(self) -> dict[str, int]:
        """How many rows of the split do not fit the lengths or are empty."""
        input_length, target_length = self._lengths
        return {
            "inputs cut": int((np.diff(self._data.input_offsets) > input_length).sum()),
            "targets cut": int((np.diff(self._data.target_offsets) > target_length).sum()),
            "empty examples": int(self._data.empty.sum()),
        }

    def state(self) -> bytes:
        """The position after the batch last returned: a small JSON text, the same on every host."""
        return json.dumps({**self._order, "position": self._position}, sort_keys=True).encode()

    def restore(self, state: bytes) -> None:
        """Go to a saved position: the next batches are those that followed it.

        Args:
          state: what `state()` returned, in this process or another; the number of hosts and the
            batch size may have changed since, the data, seed and shuffling may not.

        Raises:
          ValueError: if the state is damaged or belongs to other data, another seed or shuffling.
        """
        try:
            saved = json.loads(state)
            position = saved.pop("position")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise InvalidFile(f"the data position is damaged ({error})") from error
        if type(position) is not int or position < 0:
            raise InvalidFile(f"the data position is damaged (position {position!r})")
        for name, value in self._order.items():
            if saved.get(name) != value:
                raise InvalidFile(
                    f"the data position belongs to another order: {name} was {saved.get(name)!r}, "
                    f"now {value!r}; restore the data and settings it was saved with, or start anew"
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
) -> TrainingBatches:
    """Endless batches of a split, each epoch in another order.

    Args:
      task: the task.
      split: the name of one of its splits.
      batch_size: B, rows of a batch over all hosts.
      input_length: S. A longer input is cut and its last token is EOS.
      target_length: T. A longer target is cut and has no EOS.
      seed: selects the order, non-negative.
      shuffle: false keeps the source's order.
      own_rows: which rows of each batch this host reads, ascending (`mesh.own_rows`); None is all.

    Returns:
      An iterator of dictionaries, R = own rows: encoder_input_tokens int32 [R, S],
      decoder_target_tokens int32 [R, T], example_weights float32 [R] (0 for an empty input or
      target), rows int64 [R] (each row's number in the split; −1 for padding), and the integers
      inputs_cut, targets_cut, empty_examples of this host's rows.

    Raises:
      ValueError: if a size is below 1, there is no such row of a batch, the split has fewer rows
        than a batch, or no row with both an input and a target.
    """
    own = _check_sizes(batch_size, input_length, target_length, own_rows)
    task.check_batch(batch_size)
    data = tokenized_split(task, split)
    if data.empty.all():
        raise InvalidValue(f"task {task.name}: all {data.rows} rows of split {split!r} are empty")
    if data.rows < batch_size:
        raise InvalidValue(
            f"task {task.name}: split {split!r} has {data.rows} rows, fewer than a batch of "
            f"{batch_size}, which would hold rows twice: lower BATCH_SIZE, or give more rows"
        )
    eos = task.vocabulary.eos_id
    return TrainingBatches(
        data, eos, batch_size, input_length, target_length, seed, shuffle, own,
        task.vocabulary.unk_id,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """The batches of a split and its texts; text i belongs to row i of the batches laid end to end.

    Attributes:
      batches: dictionaries as `training_batches` gives them. Only padding (at the end) weighs 0.
      inputs: the prompts as text.
      targets: the references as text, whole even where the tokens were cut.
      inputs_cut, targets_cut, empty_examples: counts; empty examples are left out of the rest.
    """

    batches: tuple[dict[str, Any], ...]
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    inputs_cut: int
    targets_cut: int
    empty_examples: int


def evaluation_batches(
    task: TaskSpec,
    split: str,
    batch_size: int,
    input_length: int,
    target_length: int,
    max_examples: int | None = None,
    own_rows: np.ndarray | None = None,
) -> EvaluationSet:
    """Every row of a split once, in order, the last batch filled up with rows of weight 0.

    Args:
      task: the task.
      split: the name of one of its splits.
      batch_size: B, rows of a batch over all hosts.
      input_length: S, as in `training_batches`.
      target_length: T, as in `training_batches`.
      max_examples: how many rows to use, the first; None uses all.
      own_rows: as in `training_batches`. The texts and counts are those of all hosts.

    Raises:
      ValueError: if a size is below 1, there is no such row of a batch, or no example is left.
    """
    own = _check_sizes(batch_size, input_length, target_length, own_rows)
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
        batches.append(
            _batch(data, mine, len(own), input_length, target_length, task.vocabulary.eos_id)
        )
    return EvaluationSet(
        tuple(batches),
        tuple(data.inputs[i] for i in rows),
        tuple(data.targets[i] for i in rows),
        int((np.diff(data.input_offsets)[rows] > input_length).sum()),
        int((np.diff(data.target_offsets)[rows] > target_length).sum()),
        int(data.empty.sum()),
    )
