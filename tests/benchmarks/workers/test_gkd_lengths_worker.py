"""GKD's side of the comparison: outputs as long as the targets, an epoch's batches, its steps."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_lengths import Rows
from benchmarks.workers import gkd_lengths_worker as worker
from benchmarks.workers.gkd_worker import config
from benchmarks.workloads import Size
from gkd.distill.types import Batch
from gkd.models.t5 import as_seq2seq
from tests.random_params import random_params

TINY = Size(16, 2, 8, 16, 1)
IDS = 64


def rows(count=64, longest=64):
    generator = np.random.default_rng(1)
    return Rows(
        generator.integers(2, longest + 1, count), generator.integers(2, 9, count), longest, 8
    )


def test_samples_end_where_the_targets_end():
    student = as_seq2seq(config(TINY, IDS))
    params = random_params(student)
    valid = jnp.arange(IDS) > 1  # EOS only where it is forced
    batch = Batch(
        jnp.ones((3, 4), jnp.int32),
        jnp.array([[5, 1, 0, 0, 0], [5, 6, 7, 8, 1], [5, 6, 1, 0, 0]]),
        jnp.ones(3),
    )
    sample = worker.as_long_as_targets(student, valid.at[1].set(True))

    @jax.jit
    def rollout_of(params, batch):
        encoded = student.encode(params, batch.encoder_input_tokens)
        return sample(params, encoded, batch, jax.random.PRNGKey(0), jnp.arange(3))

    rollout = rollout_of(params, batch)
    assert (rollout.target_tokens != 0).sum(axis=1).tolist() == [2, 5, 3]
    assert [rollout.target_tokens[i, n - 1].item() for i, n in enumerate((2, 5, 3))] == [1, 1, 1]


def test_an_epochs_batches_hold_every_row_once_and_count_its_tokens():
    given = rows()
    shapes, steps, tokens, batch_of = worker.batches(given, 8, by_targets=True, ids=IDS)
    assert sum(tokens) == given.inputs.sum() + given.targets.sum()
    assert len({source for _, source, _ in shapes}) > 1
    for number, (size, source, target) in enumerate(shapes):
        batch = batch_of(number)
        assert batch.encoder_input_tokens.shape == (size, source) == (8, source)
        assert batch.decoder_target_tokens.shape == (size, target)
        written = (batch.decoder_target_tokens != 0).sum(axis=1)
        assert written.max() == steps[number]
        assert (batch.encoder_input_tokens != 0).sum() + written.sum() == tokens[number]


def test_both_parts_take_steps_on_the_strata(one_device):
    parts = worker.make(rows(longest=32), 8, 2, sizes=(TINY, TINY), vocabulary=IDS)
    for name in ("sft", "gkd"):
        runs = parts[name]()
        assert sum(stratum.batches for stratum, _ in runs) == 8
        loss, weight = runs[0][1]()["loss"]
        assert weight > 0 and np.isfinite(loss) and loss > 0
