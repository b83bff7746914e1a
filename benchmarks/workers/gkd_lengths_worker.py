"""GKD's steps on rows of real lengths, batched as LENGTH_BUCKETS='batches' batches them."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.real_lengths import Rows, padded, strata
from benchmarks.workers.gkd_worker import config
from benchmarks.workers.strata_protocol import serve
from benchmarks.workloads import STUDENT, TEACHER, USABLE, VOCABULARY
from gkd.data.length_buckets import BatchOrder, choose_shapes
from gkd.decode import sampling
from gkd.distill import divergences, losses, optimizers, step_functions, train_step
from gkd.distill.types import Batch
from gkd.models.interface import T5_IDS
from gkd.models.t5 import as_seq2seq
from gkd.parallel import mesh as meshes


def make(rows: Rows, size, most, sizes=(STUDENT, TEACHER), vocabulary=VOCABULARY):
    """The parts: sft; gkd."""
    student, teacher = (as_seq2seq(config(one, vocabulary)) for one in sizes)
    mesh = meshes.make_mesh()
    abstract = meshes.replicated(mesh)
    usable = jnp.asarray((np.arange(vocabulary) > 0) & (np.arange(vocabulary) < USABLE))
    ids = min(vocabulary, 32000)

    def init(model, seed):
        params = jax.jit(lambda key: nn.meta.unbox(model.init(key)))(jax.random.PRNGKey(seed))
        return jax.device_put(params, abstract)

    def part(step, optimizer, teacher_params, by_targets):
        compiled = meshes.compile_step(step.step, mesh, abstract, abstract)
        fresh = train_step.init_state(init(student, 0), optimizer, 0)
        state = {"now": jax.device_put(fresh, abstract)}
        shapes, steps, tokens, batch_of = batches(rows, size, by_targets, ids)

        def run_of(number):
            batch = meshes.place_batch(batch_of(number), mesh)

            def run():
                state["now"], metrics = compiled(state["now"], teacher_params, batch)
                jax.block_until_ready((state["now"], metrics))
                return metrics

            return run

        chosen = strata(shapes, steps, tokens, most)
        return [(stratum, run_of(stratum.batch)) for stratum in chosen]

    def sft():
        optimizer = optimizers.adafactor(1e-3)
        loss = losses.make_cross_entropy_loss()
        step = train_step.make_train_step(student, optimizer, divergence_loss_fn=loss)
        return part(step, optimizer, None, by_targets=True)

    def gkd():
        optimizer = optimizers.adamw(1e-4)
        step = train_step.make_train_step(
            student, optimizer, on_policy_fraction=1.0,
            divergence_loss_fn=losses.make_divergence_loss(
                lambda *args, **kwargs: divergences.generalized_jsd(*args, beta=0.5, **kwargs),
                valid=usable,
            ),
            teacher_logits_fn=step_functions.make_teacher_logits_fn(teacher),
            sample_fn=as_long_as_targets(student, usable),
        )  # fmt: skip
        return part(step, optimizer, init(teacher, 1), by_targets=False)

    return {"sft": sft, "gkd": gkd}


def batches(rows: Rows, size: int, by_targets: bool, ids: int):
    """The batches of an epoch: shapes, longest outputs, tokens, and a function of their number."""
    longest = {"inputs": rows.longest_input, "targets": rows.longest_target}
    lengths = {"inputs": rows.inputs, "targets": rows.targets}
    shapes = choose_shapes(lengths, longest, buckets_targets=by_targets)
    shuffled = np.random.default_rng(0).permutation(len(rows.inputs))
    order = BatchOrder(shapes, size, lambda number: int(shuffled[number % len(shuffled)]), seed=0)
    epoch = [order.batch(number) for number in range(len(shuffled) // size)]
    inputs, targets = rows.texts(ids)

    def batch_of(number):
        length, members = epoch[number]
        return Batch(
            padded([inputs[row] for row in members], length["inputs"]),
            padded([targets[row] for row in members], length["targets"]),
            np.ones(size, np.float32),
        )

    return (
        [(size, length["inputs"], length["targets"]) for length, _ in epoch],
        [int(rows.targets[members].max()) for _, members in epoch],
        [int(rows.tokens[members].sum()) for _, members in epoch],
        batch_of,
    )


def as_long_as_targets(student, valid):
    """Makes a sample_fn whose rows end where the batch's targets end: at step T its logit is vast.

    Random parameters never choose EOS by themselves, but for one token in 32,100.
    """

    def sample_fn(params, encoded, batch, rng, rows):
        ends = jnp.sum(batch.decoder_target_tokens != T5_IDS.padding, axis=1)  # [B]
        column = jax.lax.stop_gradient(student.head(params).kernel[:, T5_IDS.end])  # [E]

        def decode_step(weights, cache, tokens, position):
            hidden, cache = student.decode_step(weights, cache, tokens, position)
            ended = (position + 1 >= ends)[:, None]
            return jnp.where(ended, 1e4 * column, hidden), cache

        model = dataclasses.replace(student, decode_step=decode_step)
        sample = step_functions.make_sample_fn(model, sampling.sample, valid)
        return sample(params, encoded, batch, rng, rows)

    return sample_fn


if __name__ == "__main__":
    serve(make)
