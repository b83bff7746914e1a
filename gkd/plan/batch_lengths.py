"""The lengths of a run's batches and how often each occurs: by its data, histograms or a mean."""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gkd.configuration.experiment import Experiment
from gkd.data.length_buckets import BatchOrder, choose_shapes
from gkd.data.part_lengths import BATCHES, choose_layout, parts_by_field
from gkd.data.sources import permutation
from gkd.data.tokenized_splits import tokenized_split
from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.files.json_files import read_json
from gkd.train.batch_layout import PARTS, batch_buckets, part_sizes
from gkd.train.build import batch_of_lengths
from gkd.train.step_program import StepProgram
from gkd.vocabularies.placeholder import PlaceholderVocabulary

DATA = "data"
_ROWS = 8192  # that stand for a histogram
_SPREAD = 2 / 3  # standard deviation over mean; XSum's articles: 300 over 450 tokens


@dataclasses.dataclass(frozen=True)
class BatchLengths:
    """The shapes of a training run's batches.

    Attributes:
      shapes: length of every feature, of each shape; the lengths of its parts where it has some.
      shares: the share of each shape in the batches; their sum is 1.
      padding: share of the batches' positions that hold padding.
    """

    shapes: tuple[dict[str, int | tuple[int, ...]], ...]
    shares: tuple[float, ...]
    padding: float

    def mean(self, values: Sequence[float]) -> float:
        """Averages a value of every shape over the batches."""
        return math.fsum(np.multiply(self.shares, values))


def row_lengths(experiment: Experiment, given: str) -> dict[str, np.ndarray]:
    """Finds the lengths of a run's training rows.

    Args:
      experiment: the run.
      given: 'data' reads the training rows; a name in .json is a file of histograms,
        {"inputs": {"LENGTH": ROWS, …}, "targets": …}, or the output of a plan with 'data'; a number
        is the mean length of the inputs, which are taken to be log-normal with two thirds of it as
        their standard deviation, before they are cut.

    Returns:
      Tokens of every row, by feature; the greatest length of a feature without histogram or mean.

    Raises:
      InvalidValue: none of the three, or a run whose batches have one length.
      InvalidFile: a file that holds no histograms.
      MissingFile: no such file.
    """
    if batch_buckets(experiment)[0] is None:
        why = "LENGTH_BUCKETS is None" if experiment.method.replay is None else "REPLAY is set"
        raise InvalidValue(f"--lengths={given}: {why}, so that all batches have one length")
    longest = _longest(experiment)
    if given == DATA:
        return _of_data(experiment, longest)
    if given.endswith(".json"):
        return _of_histograms(pathlib.Path(given), longest)
    return _of_mean(given, longest)


def _of_data(experiment, longest):
    task = _task(experiment)
    if isinstance(task.vocabulary, PlaceholderVocabulary):
        raise InvalidValue(
            "--lengths=data: rows are as long as their tokens in a vocabulary, and none is named: "
            "set GKD_VOCABULARY, or give a file of histograms or a mean"
        )
    columns = tokenized_split(task, experiment.batches.split).columns
    return {name: np.asarray(columns[name].lengths) for name in longest}


def _of_histograms(path, longest):
    """Rows whose lengths have the histograms' distributions, each feature for itself."""
    try:
        read = read_json(path, dict)
        read = read.get("lengths", read)
        rows = {name: _spread(read[name], i) for i, name in enumerate(longest) if name in read}
        rows["inputs"]  # required
    except FileNotFoundError as error:
        raise MissingFile(f"--lengths={path}: there is no such file") from error
    except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        raise InvalidFile(
            f'--lengths={path} holds no histograms {{"inputs": {{"LENGTH": ROWS, …}}, …}}: {error}'
        ) from error
    return _greatest(longest) | rows


def _spread(histogram: Mapping[str, int], number: int) -> np.ndarray:
    """Lengths with a histogram's distribution, in an order of their own; the inputs ascend."""
    counts = sorted((int(length), int(rows)) for length, rows in histogram.items())
    if not counts or counts[0][0] < 0 or min(rows for _, rows in counts) < 1:
        raise ValueError("a length is below 0, a number of rows below 1, or there are none")
    upto = np.cumsum([rows for _, rows in counts])
    places = (np.arange(_ROWS) + 0.5) / _ROWS * upto[-1]
    lengths = np.array([length for length, _ in counts])[np.searchsorted(upto, places)]
    return np.random.default_rng(number).permutation(lengths) if number else lengths


def _of_mean(given, longest):
    try:
        mean = float(given)
    except ValueError:
        mean = math.nan
    if not 0 < mean <= longest["inputs"]:
        raise InvalidValue(
            f"--lengths is {given!r}: give 'data', a file in .json, or the inputs' mean length, "
            f"above 0 and at most INPUT_LENGTH, {longest['inputs']}"
        )
    deviation = math.sqrt(math.log(1 + _SPREAD**2))
    normal = statistics.NormalDist(math.log(mean) - deviation**2 / 2, deviation)
    places = (np.arange(_ROWS) + 0.5) / _ROWS
    inputs = np.ceil([math.exp(normal.inv_cdf(place)) for place in places]).astype(np.int64)
    return _greatest(longest) | {"inputs": inputs}


def _greatest(longest):
    return {name: np.full(_ROWS, length) for name, length in longest.items()}


def histograms(lengths: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Counts the rows of every length, by feature, in the form that `row_lengths` reads.

    Args:
      lengths: tokens of every row, by feature.

    >>> histograms({"inputs": np.array([7, 3, 7])})
    {'inputs': {'3': 1, '7': 2}}
    """
    counts = {name: np.unique(rows, return_counts=True) for name, rows in lengths.items()}
    return {
        name: {str(length): int(count) for length, count in zip(*found, strict=True)}
        for name, found in counts.items()
    }


def batch_lengths(program: StepProgram, lengths: Mapping[str, np.ndarray]) -> BatchLengths:
    """Forms batches of rows as training does, and counts the shapes of an epoch's batches.

    Args:
      program: the run's step program.
      lengths: tokens of every row, see `row_lengths`.
    """
    experiment = program.experiment
    size = experiment.batches.size
    copies = -(-size // len(lengths["inputs"]))  # for at least one batch
    longest = _longest(experiment)
    lengths = {name: np.minimum(np.tile(lengths[name], copies), longest[name]) for name in longest}
    in_parts = batch_buckets(experiment)[0] == PARTS
    shapes = (_in_parts if in_parts else _of_like_length)(program, lengths, longest)
    counts: collections.Counter[tuple[tuple[str, Any], ...]] = collections.Counter()
    real = 0
    for shape, chosen in shapes:
        counts[tuple(shape.items())] += 1
        real += sum(lengths[name][chosen].sum() for name in shape)
    positions = sum(
        size * n * sum(float(np.mean(length)) for _, length in shape) for shape, n in counts.items()
    )
    ascending = sorted(counts, key=lambda shape: [np.mean(length) for _, length in shape])
    return BatchLengths(
        tuple(dict(shape) for shape in ascending),
        tuple(counts[shape] / counts.total() for shape in ascending),
        float(1 - real / positions),
    )


def _of_like_length(program, lengths, longest):
    """The shape and the rows of every batch of an epoch, in batches of similar length."""
    experiment = program.experiment
    buckets, buckets_targets = batch_buckets(experiment)
    rows, size = len(lengths["inputs"]), experiment.batches.size
    inputs = None if isinstance(buckets, str) else buckets
    shapes = choose_shapes(lengths, longest, inputs, buckets_targets)
    order = BatchOrder(shapes, size, lambda number: number % rows, experiment.seed)
    return (order.batch(number) for number in range(rows // size))


def _in_parts(program, lengths, longest):
    """Weighs batches of any rows, in parts of similar length."""
    experiment, sizes = program.experiment, part_sizes(program)
    rows, size = len(lengths["inputs"]), experiment.batches.size
    shuffled = permutation(rows, experiment.seed, 0)
    batches = shuffled[: rows // size * size].reshape(-1, size)
    prompts = {name: most for name, most in longest.items() if name != "targets"}
    layout = choose_layout(batches[:BATCHES], lengths, prompts, sizes.parts, sizes.shards)
    for chosen in batches:
        shape: dict[str, Any] = dict(longest)
        if layout is not None:
            own = {name: lengths[name][chosen] for name in prompts}
            shape |= {
                name: parts
                for name, parts in layout.arrange(own)[1].items()
                if min(parts) < longest[name]
            }
        yield shape, chosen


def of_shape(program: StepProgram, shape: Mapping[str, Any]) -> StepProgram:
    """Returns a step program for batches of other lengths.

    Args:
      program: the run's step program.
      shape: length of every feature, or the lengths of its parts.
    """
    rows, top_k = program.batch.encoder_input_tokens.shape[0], program.batch.teacher_top_k
    profile = {name: parts for name, parts in shape.items() if not isinstance(parts, int)}
    longest = _longest(program.experiment)
    whole = {name: longest[name] if name in profile else shape[name] for name in shape}
    batch = batch_of_lengths(whole, rows, with_top_k=top_k is not None)
    if profile:
        batch = batch.replace(
            **parts_by_field(profile, whole, part_sizes(program).shards),
            places=jax.ShapeDtypeStruct((rows,), "int32"),
        )
    return dataclasses.replace(program, batch=batch)


def _task(experiment) -> Any:
    return experiment.method.training_task or experiment.task


def _longest(experiment) -> dict[str, int]:
    batches = experiment.batches
    return _task(experiment).feature_lengths(batches.input_length, batches.target_length)
