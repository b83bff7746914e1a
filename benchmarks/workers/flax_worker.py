"""transformers' Flax T5: its generate, the whole of it under one jit.

It is older than the JAX here and still calls `clip` by arguments that were renamed.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import transformers

from benchmarks.workers.protocol import serve
from benchmarks.workers.pytorch_worker import config
from benchmarks.workloads import STUDENT, VOCABULARY

_clip = jnp.clip


def _clip_as_before(array, a_min=None, a_max=None):
    return _clip(array, a_min, a_max)


jnp.clip = _clip_as_before


def make(work, prompts, targets):
    """The part: sample."""
    model = transformers.FlaxT5ForConditionalGeneration(config(STUDENT), seed=0)
    counter = itertools.count()

    @jax.jit
    def generate(params, prompts, seed):
        return model.generate(
            prompts, attention_mask=jnp.ones_like(prompts), params=params,
            prng_key=jax.random.PRNGKey(seed), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            max_new_tokens=work.target, eos_token_id=VOCABULARY, pad_token_id=0,
        ).sequences  # fmt: skip

    def sample():
        written = jax.block_until_ready(generate(model.params, prompts, next(counter)))
        if written.shape[1] != work.target + 1:
            raise RuntimeError(f"generate wrote {written.shape[1]} tokens")

    return {"sample": sample}


if __name__ == "__main__":
    serve(make)
