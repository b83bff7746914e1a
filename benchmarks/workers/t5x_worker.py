"""T5X's Transformer and temperature_sample, composed plainly: dense JSD, AdamW, one jit per part.

Its embedding looks rows up by a gather, which is faster here than the product with a one-hot
matrix that it ships with.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import optax
from t5x import decoding
from t5x.examples.t5 import layers, network

from benchmarks.workers.protocol import serve
from benchmarks.workloads import STUDENT, TEACHER, VOCABULARY

_Embed = layers.Embed


def _gathering_embed(**options):
    return _Embed(**{**options, "one_hot": False})


layers.Embed = _gathering_embed


def make(work, prompts, targets):
    """The parts: sample; step."""
    student, teacher = (network.Transformer(config(size)) for size in (STUDENT, TEACHER))
    made, counter = {}, itertools.count()
    prompts = jnp.asarray(prompts)

    def of(module):
        if module not in made:
            shapes = (jnp.ones((1, 8), jnp.int32),) * 3
            init = jax.jit(lambda key: module.init(key, *shapes, enable_dropout=False))
            made[module] = init(jax.random.PRNGKey(0))["params"]
        return made[module]

    def write(params, key):
        encoded = student.apply(
            {"params": params}, prompts, enable_dropout=False, method=student.encode
        )
        blank = jnp.zeros((len(prompts), work.target), jnp.int32)
        _, cache = student.apply(
            {"params": params}, jnp.ones_like(prompts), blank, blank, decode=True,
            enable_dropout=False, mutable=["cache"],
        )  # fmt: skip

        def logits_of(state):
            logits, changed = student.apply(
                {"params": params, "cache": state.cache}, encoded, prompts, state.cur_token,
                state.cur_token, enable_dropout=False, decode=True, max_decode_length=work.target,
                mutable=["cache"], method=student.decode,
            )  # fmt: skip
            return jnp.squeeze(logits, axis=1), changed["cache"]

        written, _ = decoding.temperature_sample(
            blank, cache["cache"], logits_of, -1, key, topk=0, temperature=1.0
        )
        return written[:, 0]

    def score(module, params, outputs):
        inputs = jnp.pad(outputs, ((0, 0), (1, 0)))[:, :-1]
        return module.apply({"params": params}, prompts, inputs, outputs, enable_dropout=False)

    def divergence(params, reference, outputs):
        student_log, teacher_log = (
            jax.nn.log_softmax(x) for x in (score(student, params, outputs), reference)
        )
        middle = jnp.logaddexp(student_log, teacher_log) - jnp.log(2.0)

        def kl(first):
            return jnp.sum(jnp.exp(first) * (first - middle), axis=-1)

        return jnp.mean(0.5 * kl(student_log) + 0.5 * kl(teacher_log))

    optimizer = optax.adamw(1e-4)
    write_jit = jax.jit(write)
    teacher_jit = jax.jit(lambda params, outputs: score(teacher, params, outputs))

    def learn(params, memory, reference, outputs):
        gradient = jax.grad(divergence)(params, reference, outputs)
        updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    learn_jit = jax.jit(learn, donate_argnums=(0, 1))
    state = {}

    def step():
        if not state:
            state["params"] = jax.tree.map(jnp.copy, of(student))
            state["memory"] = optimizer.init(state["params"])
        outputs = write_jit(state["params"], jax.random.PRNGKey(next(counter)))
        reference = teacher_jit(of(teacher), outputs)
        state["params"], state["memory"] = learn_jit(
            state["params"], state["memory"], reference, outputs
        )
        jax.block_until_ready(state["params"])

    def sample():
        jax.block_until_ready(write_jit(of(student), jax.random.PRNGKey(next(counter))))

    return {"sample": sample, "step": step}


def config(size):
    """The architecture as T5X names it."""
    return network.T5Config(
        vocab_size=VOCABULARY, emb_dim=size.width, num_heads=size.heads, head_dim=size.head_dim,
        mlp_dim=size.mlp, num_encoder_layers=size.layers, num_decoder_layers=size.layers,
        mlp_activations=("gelu", "linear"), dropout_rate=0.0,
    )  # fmt: skip


if __name__ == "__main__":
    serve(make)
