"""A model whose next-token distribution is a table, and draws from it."""

import jax
import jax.numpy as jnp

from gkd.decode.sampling import sample
from gkd.models.interface import Encoded, Head, Seq2SeqModel


def table_model(rows, vocab):
    """A model whose next-token logits are rows[last token] and nothing else: exact in advance."""
    rows = jnp.asarray(rows, jnp.float32)
    return Seq2SeqModel(
        init=lambda rng: {},
        encode=lambda params, tokens, dropout_rng=None: Encoded(tokens[..., None], tokens > 0),
        decode_hidden=lambda params, encoded, tokens: None,
        init_cache=lambda params, encoded, length, samples: ((), jnp.int32(0)),
        decode_step=lambda weights, cache, tokens, position: (rows[tokens], cache),
        head=lambda params: Head(jnp.eye(vocab)),
        vocab_size=vocab,
    )


def draw(rows, batch, key, **options):
    vocab = len(rows[0])
    encoded = Encoded(jnp.ones((batch, 1, 1)), jnp.ones((batch, 1), bool))
    options = {"valid": jnp.ones(vocab, bool), "max_length": 1, **options}
    run = jax.jit(lambda key: sample(table_model(rows, vocab), {}, encoded, key, **options))
    return run(jax.random.PRNGKey(key))
