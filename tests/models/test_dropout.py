"""Dropout is where T5X has it, shared along the length, and another mask at every place."""

import collections
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gkd.models import t5

ROWS, SOURCE, LENGTH, LAYERS, RATE = 2, 5, 4, 2, 0.25


def parameters(config):
    """Normal noise of a width that keeps the states' size."""
    shapes = nn.meta.unbox(jax.eval_shape(t5.as_seq2seq(config).init, jax.random.key(0)))
    random = np.random.RandomState(0)
    return jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape) / np.sqrt(x.shape[0]), x.dtype), shapes
    )


WIDTHS = {"emb_dim": 48, "num_heads": 2, "head_dim": 8, "mlp_dim": 40}
# T5X's network.py, by its input's shape: after the embedding, after each sublayer and after the
# final norm; on attention weights, where one mask serves all queries; between the MLP's products.
ENCODER = {
    (ROWS, SOURCE, 48): 2 + 2 * LAYERS, (ROWS, 2, 1, SOURCE): LAYERS,
    (ROWS, SOURCE, 40): LAYERS,
}  # fmt: skip
DECODER = {
    (ROWS, LENGTH, 48): 2 + 3 * LAYERS, (ROWS, 2, 1, LENGTH): LAYERS,
    (ROWS, 2, 1, SOURCE): LAYERS, (ROWS, LENGTH, 40): LAYERS,
}  # fmt: skip


@pytest.mark.parametrize("stacked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_mask_of_t5x_is_there_shared_along_the_length_and_its_own(stacked):
    config = t5.T5Config(
        vocab_size=16, num_encoder_layers=LAYERS, num_decoder_layers=LAYERS, dropout_rate=RATE,
        stacked_layers=stacked, **WIDTHS,
    )  # fmt: skip
    model, found = t5.as_seq2seq(config), []

    def record(before, after):
        found.append((np.asarray(before), np.asarray(after)))

    def intercept(run, args, kwargs, context):
        out = run(*args, **kwargs)
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            jax.debug.callback(record, args[0], out)
        return out

    params = parameters(config)
    prompts = jnp.asarray(np.arange(ROWS * SOURCE).reshape(ROWS, SOURCE) + 2)
    targets = prompts[:, :LENGTH]

    def masks(run):
        found.clear()
        with nn.intercept_methods(intercept):
            result = run()
        jax.effects_barrier()
        return result, list(found)

    key = functools.partial(jax.random.key, 7)
    encode, decode = jax.jit(model.encode), jax.jit(model.decode_hidden)
    encoded, of_encoder = masks(lambda: encode(params, prompts, dropout_rng=key()))
    _, of_decoder = masks(lambda: decode(params, encoded, targets, dropout_rng=jax.random.key(8)))
    for masks_found, wanted in ((of_encoder, ENCODER), (of_decoder, DECODER)):
        assert collections.Counter(before.shape for before, _ in masks_found) == wanted
        patterns = collections.defaultdict(list)
        for before, after in masks_found:
            scale = np.where(before == 0, np.nan, after / np.where(before == 0, 1, before))
            kept, cut = np.nanmax(scale, axis=-2), np.nanmin(scale, axis=-2)
            np.testing.assert_allclose(kept, cut, rtol=1e-5)  # one mask for all positions
            assert np.all(np.isclose(kept, 0) | np.isclose(kept, 1 / (1 - RATE)))
            patterns[before.shape].append(kept > 0)
        wide = [mask for shape, group in patterns.items() for mask in group if shape[-1] >= 40]
        assert 0.7 < np.mean(np.concatenate([mask.ravel() for mask in wide])) < 0.8
        for group in patterns.values():
            for a, b in itertools.combinations(group, 2):
                assert a.shape[-1] < 40 or (a != b).any()  # small ones may be alike by chance


def test_without_a_key_or_a_rate_nothing_is_dropped():
    config = t5.T5Config(
        vocab_size=16, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=RATE, **WIDTHS
    )
    params = parameters(config)
    tokens = jnp.asarray([[2, 3, 1]])
    encode = jax.jit(t5.as_seq2seq(config).encode)
    plain = encode(params, tokens).hidden
    whole = jax.jit(t5.as_seq2seq(t5.T5Config(**{**vars(config), "dropout_rate": 0.0})).encode)
    same = whole(params, tokens, dropout_rng=jax.random.key(0)).hidden
    np.testing.assert_array_equal(plain, same)
    other = encode(params, tokens, dropout_rng=jax.random.key(0)).hidden
    assert np.abs(other - plain).max() > 0.1
