"""Batches and programs of a generator."""

import jax
import numpy as np

from gkd.data.length_buckets import doubled_lengths
from gkd.infer import generator
from gkd.models.t5 import as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from tests.infer.inference import (
    CONFIG,
)


def test_a_program_for_each_length_and_no_more(model):
    mesh, rules = meshes.make_mesh(), meshes.rules_for()
    boxed = jax.eval_shape(as_seq2seq(CONFIG).init, jax.random.key(0))
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    loaded = model_loading.LoadedModel(CONFIG, as_seq2seq(CONFIG), shardings, model, None)
    buckets = doubled_lengths(128)
    assert buckets == (32, 64, 128)
    writer = generator.Generator(
        loaded, mesh, np.arange(300) > 0, generator.Decoding(max_length=2), buckets, 8
    )
    random = np.random.default_rng(0)
    for _ in range(3):
        inputs = [[5] * n for n in random.integers(1, 129, 30)]
        positions = [position for batch in writer.outputs(inputs) for position, _ in batch]
        assert sorted(positions) == list(range(30))
    assert writer._compiled._cache_size() == writer.programs == 3
