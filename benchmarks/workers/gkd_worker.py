"""GKD's own step and its parts, as `train` composes them."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workers.protocol import serve
from benchmarks.workloads import STUDENT, TEACHER, USABLE, VOCABULARY
from gkd.decode import sampling
from gkd.distill import divergences, losses, optimizers, step_functions, train_step
from gkd.distill.types import Batch
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.parallel import mesh as meshes


def make(work, prompts, targets, sizes=(STUDENT, TEACHER), vocabulary=VOCABULARY, lean=False):
    """The parts: sample, step and supervised; `lean` as with STUDENT_STACKED and REMAT in gin."""
    student, teacher = (
        as_seq2seq(config(size, vocabulary, stacked_layers=lean, remat=lean and size is sizes[0]))
        for size in sizes
    )
    usable = np.zeros(vocabulary, bool)
    usable[1:USABLE] = True
    return parts_of(student, teacher, usable, prompts, targets)


def parts_of(student, teacher, usable, prompts, targets):
    """The parts for two models: sample, step and supervised.

    Args:
      student, teacher: `Seq2SeqModel`s, with random parameters.
      usable: bool [V], the ids of the vocabulary.
      prompts, targets: int32 [B, S], [B, T].
    """
    writable = usable.copy()
    ids = student.special_ids
    writable[list(ids.ends or (ids.end,))] = False  # no output ends early
    mesh = meshes.make_mesh()
    batch = meshes.place_batch(Batch(prompts, targets, np.ones(len(prompts), np.float32)), mesh)
    counter = itertools.count()
    params = {}

    def of(model):
        if model not in params:
            key = jax.random.PRNGKey(0)
            params[model] = jax.jit(lambda key: nn.meta.unbox(model.init(key)))(key)
        return params[model]

    sample_fn = step_functions.make_sample_fn(student, sampling.sample, jnp.asarray(writable))
    loss = losses.make_divergence_loss(
        lambda *args, **kwargs: divergences.generalized_jsd(*args, beta=0.5, **kwargs),
        valid=jnp.asarray(usable),
    )
    optimizer = optimizers.adamw(1e-4)

    def step_of(fraction):
        return train_step.make_train_step(
            student, optimizer, divergence_loss_fn=loss, on_policy_fraction=fraction,
            teacher_logits_fn=step_functions.make_teacher_logits_fn(teacher), sample_fn=sample_fn,
        )  # fmt: skip

    @jax.jit
    def write(params, batch, seed):
        rows = jnp.arange(batch.example_weights.shape[0])
        encoded = student.encode(params, batch.encoder_input_tokens)
        return sample_fn(params, encoded, batch, jax.random.PRNGKey(seed), rows)

    state = {}

    def whole(fraction):
        abstract = meshes.replicated(mesh)
        compiled = meshes.compile_step(step_of(fraction).step, mesh, abstract, abstract)

        def run():
            if not state:
                made = train_step.init_state(of(student), optimizer, 0)
                del params[student]  # the state owns and donates them
                state["now"] = jax.device_put(made, abstract)
            state["now"], metrics = compiled(state["now"], of(teacher), batch)
            jax.block_until_ready((state["now"], metrics))

        return run

    return {
        "sample": lambda: jax.block_until_ready(write(of(student), batch, next(counter))),
        "step": whole(1.0),
        "supervised": whole(0.0),
    }


def config(size, vocabulary, **ways):
    """The architecture as GKD names it, run in some way."""
    return T5Config(
        vocab_size=vocabulary, emb_dim=size.width, num_heads=size.heads, head_dim=size.head_dim,
        mlp_dim=size.mlp, num_encoder_layers=size.layers, num_decoder_layers=size.layers,
        **ways,
    )  # fmt: skip


if __name__ == "__main__":
    serve(make)
