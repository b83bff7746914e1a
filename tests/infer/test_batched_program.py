"""Programs over many inputs, against sums by hand."""

import jax.numpy as jnp
import numpy as np

from gkd.infer.batched_program import BatchedProgram
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.runs.model_loading import LoadedModel


def test_every_input_runs_once_in_full_batches_of_its_length():
    mesh = meshes.make_mesh()
    config = T5Config(vocab_size=8)  # of which only the padding id is used
    loaded = LoadedModel(config, as_seq2seq(config), meshes.replicated(mesh), None)
    rows = 2 * mesh.shape["data"]

    def function(params, shared, inputs, numbers):
        length = jnp.full(inputs.shape[0], inputs.shape[1])
        return params * inputs.sum(axis=1) + shared + numbers, length

    program = BatchedProgram(function, loaded, mesh, buckets=(2, 4, 8), batch_size=rows)
    inputs = [[i] * (1 + i % 3) for i in range(1, 2 * rows + 2)]  # at most three tokens
    results = {}
    asked = []

    def rows_of(positions):
        asked.append(positions)
        return (np.array(positions, np.int32),)

    for positions, (sums, lengths) in program.run(jnp.int32(10), 1000, inputs, rows_of):
        assert sums.shape == (rows,)
        for row, position in enumerate(positions):
            assert position not in results
            results[position] = int(sums[row])
            assert len(inputs[position]) <= lengths[row] in (2, 4)
    assert [len(positions) for positions in asked] == [rows] * 3  # the last is filled up
    assert [results[i] for i in range(len(inputs))] == [
        10 * sum(row) + 1000 + i for i, row in enumerate(inputs)
    ]
    assert program.lengths_run == {2, 4}
