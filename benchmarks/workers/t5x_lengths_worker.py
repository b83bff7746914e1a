"""T5X on rows of real lengths: its train step on packed rows, a GKD step of its parts on padded.

T5X trains on batches of one shape. Rows that are packed cannot be sampled from, so the GKD step
pads them to the greatest length; its sampling loop stops when all rows have ended.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import seqio
import tensorflow as tf
from t5x import adafactor, decoding, models, train_state, trainer
from t5x.examples.t5 import network

from benchmarks.real_lengths import padded, strata
from benchmarks.workers.strata_protocol import serve
from benchmarks.workers.t5x_worker import config
from benchmarks.workloads import STUDENT, TEACHER

_PACKED = range(1, 9)  # a packed row is so many times as long as the longest row


def make(rows, size, most):
    """The parts: "sft packed 1", "sft packed 2", … by the length of packed rows; gkd."""
    parts = {
        f"sft packed {times}": lambda times=times: _sft(rows, size, most, times)
        for times in _PACKED
    }
    return parts | {"gkd": lambda: _gkd(rows, size, most)}


def _sft(rows, size, most, times):
    """T5X's train step (trainer.train_with_lr) on seqio's packed batches of as many real tokens."""
    length = {"inputs": times * rows.longest_input, "targets": times * rows.longest_target}
    packed = _packed(rows, length)
    tokens = sum(
        (packed[name] > 0).sum(axis=1) for name in ("encoder_input_tokens", "decoder_target_tokens")
    )  # [packed rows]
    count = max(1, round(size * rows.tokens.mean() / tokens.mean()))
    batches = len(tokens) // count
    chosen = strata(
        [(count, *length.values())] * batches, [0] * batches,
        tokens[: batches * count].reshape(batches, count).sum(axis=1).tolist(), most,
    )  # fmt: skip
    vocabulary = seqio.PassThroughVocabulary(size=config(STUDENT).vocab_size, eos_id=1)
    model = models.EncoderDecoderModel(
        module=network.Transformer(config(STUDENT)),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=adafactor.Adafactor(
            decay_rate=0.8,
            step_offset=0,
            logical_factor_rules=adafactor.standard_logical_factor_rules(),
        ),
    )
    first = {name: value[:count] for name, value in packed.items()}
    variables = jax.jit(
        lambda key: model.get_initial_variables(key, {k: v.shape for k, v in first.items()})
    )(jax.random.PRNGKey(0))
    state = {"now": train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)}
    train = jax.jit(
        lambda state, batch: trainer.train_with_lr(
            state, batch, 1e-3, None, model=model, num_microbatches=None
        ),
        donate_argnums=0,
    )

    def run_of(number):
        here = slice(number * count, (number + 1) * count)
        batch = {name: jnp.asarray(value[here]) for name, value in packed.items()}

        def run():
            state["now"], metrics = train(state["now"], batch)
            jax.block_until_ready((state["now"], metrics))

        return run

    return [(stratum, run_of(stratum.batch)) for stratum in chosen]


def _packed(rows, length):
    """All rows in the order of the file, packed by seqio: arrays [packed rows, length] by name."""
    inputs, targets = rows.texts()

    def generate():
        for source, target in zip(inputs, targets, strict=True):
            yield {"inputs": source, "targets": target}

    column = tf.TensorSpec([None], tf.int32)
    data = tf.data.Dataset.from_generator(
        generate, output_signature={"inputs": column, "targets": column}
    )
    data = seqio.EncDecFeatureConverter(pack=True)(data, task_feature_lengths=length)
    batch = next(data.batch(len(inputs)).as_numpy_iterator())
    return {name: np.asarray(value) for name, value in batch.items()}


def _gkd(rows, size, most):
    """The step of `t5x_worker` on padded rows, whose samples end where the targets end."""
    student, teacher = (network.Transformer(config(one)) for one in (STUDENT, TEACHER))
    inputs, targets = rows.texts()
    epoch = [range(i, i + size) for i in range(0, len(inputs) - size + 1, size)]
    shape = (size, rows.longest_input, rows.longest_target)
    chosen = strata(
        [shape] * len(epoch), [int(rows.targets[members].max()) for members in epoch],
        [int(rows.tokens[members].sum()) for members in epoch], most,
    )  # fmt: skip

    def init(module, seed):
        shapes = (jnp.ones((1, 8), jnp.int32),) * 3
        make_params = jax.jit(lambda key: module.init(key, *shapes, enable_dropout=False))
        return make_params(jax.random.PRNGKey(seed))["params"]

    optimizer = optax.adamw(1e-4)
    state = {"params": init(student, 0), "key": jax.random.PRNGKey(0)}
    state["memory"] = optimizer.init(state["params"])
    teacher_params = init(teacher, 1)
    write = jax.jit(lambda *arguments: _write(student, *arguments))
    score = jax.jit(lambda *arguments: _score(teacher, *arguments))

    def learn(params, memory, reference, prompts, outputs):
        gradient = jax.grad(
            lambda params: _divergence(
                _score(student, params, prompts, outputs), reference, outputs
            )
        )(params)
        updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    learn = jax.jit(learn, donate_argnums=(0, 1))

    def run_of(number):
        prompts = jnp.asarray(padded([inputs[row] for row in epoch[number]], rows.longest_input))
        ends = jnp.asarray(rows.targets[epoch[number]])

        def run():
            state["key"], key = jax.random.split(state["key"])
            blank = jnp.zeros((size, rows.longest_target), jnp.int32)
            outputs = write(state["params"], prompts, blank, ends, key)
            reference = score(teacher_params, prompts, outputs)
            state["params"], state["memory"] = learn(
                state["params"], state["memory"], reference, prompts, outputs
            )
            jax.block_until_ready(state["params"])
            return outputs

        return run

    return [(stratum, run_of(stratum.batch)) for stratum in chosen]


def _write(module, params, prompts, blank, ends, key):
    """Samples by T5X's loop, int32 [B, T]; row b ends with token number ends[b]."""
    encoded = module.apply({"params": params}, prompts, enable_dropout=False, method=module.encode)
    _, cache = module.apply(
        {"params": params}, jnp.ones_like(prompts), blank, blank, decode=True,
        enable_dropout=False, mutable=["cache"],
    )  # fmt: skip

    def logits_of(state):
        logits, changed = module.apply(
            {"params": params, "cache": state.cache}, encoded, prompts, state.cur_token,
            state.cur_token, enable_dropout=False, decode=True, max_decode_length=blank.shape[1],
            mutable=["cache"], method=module.decode,
        )  # fmt: skip
        certain = jnp.where(state.cur_index + 1 >= ends, 1e9, 0.0)
        return jnp.squeeze(logits, axis=1).at[:, 1].add(certain), changed["cache"]

    written, _ = decoding.temperature_sample(
        blank, cache["cache"], logits_of, 1, key, topk=0, temperature=1.0
    )
    return written[:, 0]


def _score(module, params, prompts, outputs):
    """Logits [B, T, V] of the outputs."""
    inputs = jnp.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
    return module.apply({"params": params}, prompts, inputs, outputs, enable_dropout=False)


def _divergence(student, teacher, outputs):
    """The mean over tokens of JSD(0.5) of dense logits [B, T, V]."""
    student_log, teacher_log = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    middle = jnp.logaddexp(student_log, teacher_log) - jnp.log(2.0)

    def kl(first):
        return jnp.sum(jnp.exp(first) * (first - middle), axis=-1)

    of_tokens = 0.5 * kl(student_log) + 0.5 * kl(teacher_log)  # [B, T]
    weights = outputs > 0
    return jnp.sum(jnp.where(weights, of_tokens, 0.0)) / jnp.sum(weights)


if __name__ == "__main__":
    serve(make)
