"""A small student and teacher, their batch, and train steps over them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, train_step
from gkd.distill.types import Batch
from gkd.models import t5

VOCAB, ROWS, LENGTH = 64, 16, 10


def model_of(width, seed):
    config = t5.T5Config(
        vocab_size=VOCAB, emb_dim=width, num_heads=2, head_dim=8, mlp_dim=2 * width,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    model = t5.as_seq2seq(config)
    return model, nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed)))


STUDENT, STUDENT_PARAMS = model_of(16, 0)
TEACHER, TEACHER_PARAMS = model_of(32, 1)
VALID = jnp.ones(VOCAB, bool).at[0].set(False)


def make_batch(rows=ROWS):
    random = np.random.RandomState(0)
    targets = random.randint(2, VOCAB, (rows, LENGTH))
    for row, length in enumerate(random.randint(1, LENGTH + 1, rows)):
        targets[row, length - 1] = 1
        targets[row, length:] = 0
    inputs = random.randint(2, VOCAB, (rows, 7))
    inputs[::3, 5:] = 0
    weights = np.ones(rows, np.float32)
    weights[-1] = 0
    return Batch(jnp.asarray(inputs), jnp.asarray(targets), jnp.asarray(weights))


def build(fraction, optimizer=None, divergence=divergences.forward_kl, **options):
    return train_step.make_train_step(
        STUDENT,
        optimizer or optax.sgd(1.0),
        divergence_loss_fn=losses.make_divergence_loss(divergence, valid=VALID),
        teacher_logits_fn=train_step.make_teacher_logits_fn(TEACHER),
        sample_fn=train_step.make_sample_fn(STUDENT, sample, VALID),
        on_policy_fraction=fraction,
        **options,
    )


def start(optimizer=None, seed=3):
    params = jax.tree.map(jnp.copy, STUDENT_PARAMS)
    return train_step.init_state(params, optimizer or optax.sgd(1.0), seed)


@functools.cache
def one_device(fraction):
    return jax.jit(build(fraction).step)(start(), TEACHER_PARAMS, make_batch())


def value(metrics, name):
    total, weight = metrics[name]
    return float(total / weight)


def close(got, want, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), got, want)
