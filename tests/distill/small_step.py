"""A small student and teacher, their batch, and train steps over them.

They are no T5, whose step takes three times as long to compile: a step knows a model by its
functions alone. `t5_models` are for what concerns the sharding of a T5.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from gkd.decode.sampling import sample
from gkd.distill import divergences, losses, step_functions, train_step
from gkd.distill.types import Batch
from gkd.models import t5
from gkd.models.interface import Encoded, Head, Hidden, Seq2SeqModel

VOCAB, ROWS, LENGTH = 64, 16, 10


def encode(params, tokens, dropout_rng=None):
    place = jnp.arange(1, tokens.shape[1] + 1)[:, None] / 8  # whatever the padding
    return Encoded(jnp.tanh(place * params["prompt"][tokens]), tokens > 0)


def context(params, encoded, samples):
    """[N, E]: the mean of the prompt's states, for each of its samples."""
    mask = encoded.mask[..., None]
    mean = jnp.sum(encoded.hidden * mask, axis=1) / jnp.sum(mask, axis=1)
    return jnp.repeat(mean @ params["mix"], samples, axis=0)


def decode_hidden(params, encoded, tokens, dropout_rng=None):
    first = context(params, encoded, tokens.shape[0] // encoded.mask.shape[0])
    return Hidden(jnp.tanh(first[:, None] + jnp.cumsum(params["target"][tokens], axis=1)))


def init_cache(params, encoded, length, samples=1):
    return params["target"], context(params, encoded, samples)


def decode_step(weights, cache, tokens, position):
    cache = cache + weights[tokens]
    return jnp.tanh(cache), cache


def model_of(width, seed):
    """Prompt and target are sums of embeddings, the next token's logits linear in their tanh."""
    random = np.random.RandomState(seed)
    shapes = {"prompt": (VOCAB, width), "target": (VOCAB, width), "mix": (width, width)}
    params = {name: random.normal(size=shape) for name, shape in shapes.items()}
    params["head"] = random.normal(size=(width, VOCAB)) / np.sqrt(width)
    model = Seq2SeqModel(
        init=lambda rng: params,
        encode=encode,
        decode_hidden=decode_hidden,
        init_cache=init_cache,
        decode_step=decode_step,
        head=lambda params: Head(params["head"]),
        vocab_size=VOCAB,
    )
    return model, {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}


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


@functools.cache
def t5_models():
    """A T5 student and teacher: ((model, params), (model, params))."""
    config = t5.T5Config(
        vocab_size=VOCAB, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    model = t5.as_seq2seq(config)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0)))

    def params(seed):
        random = np.random.RandomState(seed)
        return jax.tree.map(
            lambda x: jnp.asarray(random.normal(size=x.shape) / np.sqrt(x.shape[0]), x.dtype),
            shapes,
        )

    return (model, params(0)), (model, params(1))


def build(
    fraction, optimizer=None, divergence=divergences.forward_kl,
    student=STUDENT, teacher=TEACHER, **options,
):  # fmt: skip
    return train_step.make_train_step(
        student,
        optimizer or optax.sgd(1.0),
        divergence_loss_fn=losses.make_divergence_loss(divergence, valid=VALID),
        teacher_logits_fn=step_functions.make_teacher_logits_fn(teacher),
        sample_fn=step_functions.make_sample_fn(student, sample, VALID),
        on_policy_fraction=fraction,
        **options,
    )


def start(optimizer=None, seed=3, params=STUDENT_PARAMS):
    params = jax.tree.map(jnp.copy, params)
    return train_step.init_state(params, optimizer or optax.sgd(1.0), seed)


def small_models():
    return (STUDENT, STUDENT_PARAMS), (TEACHER, TEACHER_PARAMS)


@functools.cache
def one_device(fraction, models=small_models):
    (student, params), (teacher, teacher_params) = models()
    step = build(fraction, student=student, teacher=teacher).step
    return jax.jit(step)(start(params=params), teacher_params, make_batch())


def value(metrics, name):
    total, weight = metrics[name]
    return float(total / weight)


def close(got, want, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), got, want)
