"""A run directory of parameters alone, written and opened again."""

import dataclasses

import numpy as np

from gkd.checkpoints.run_format import open_run_checkpoint, save_run_checkpoint
from gkd.checkpoints.tensors import tensor_names
from tests.checkpoints.t5x_checkpoints import TINY, random_params


def test_parameters_and_architecture_come_back(tmp_path):
    params = random_params(TINY)
    description = {"model": dataclasses.asdict(TINY), "vocabulary": None}
    save_run_checkpoint(tmp_path / "run", TINY, params, description)
    opened = open_run_checkpoint(tmp_path / "run")
    assert (opened.format, opened.config.num_decoder_layers, opened.config.num_heads) == (
        "gkd",
        2,
        3,
    )
    wanted = tensor_names(params)
    assert set(opened.tensors) == set(wanted)
    for name, tensor in opened.tensors.items():
        np.testing.assert_array_equal(tensor.read(), wanted[name])
