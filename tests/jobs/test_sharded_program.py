"""What a run's compiled step exchanges between chips, holds on each, and reads back to the host."""

import jax
import numpy as np
import pytest
from jax._src.array import ArrayImpl

from gkd.jobs import command_line
from gkd.jobs.monitor import Monitor
from gkd.jobs.plan_memory import resident
from gkd.parallel.program_cost import program_cost
from tests.jobs.test_plan import DISTIL, TINY, traced

VOCABULARY, ROWS, TARGET = 4096, 16, 12
LOGITS = 4 * ROWS * TARGET * VOCABULARY
WIDE = (*DISTIL, "LAMBDA=1.0", f"t5.T5Config.vocab_size={VOCABULARY}")


def exchanges(*overrides):
    program = traced(*WIDE, *overrides)
    text = program.lower()["step"]().compile().as_text()
    return program, program_cost(text).collectives


@pytest.mark.parametrize(
    "overrides",
    [("MODEL_PARALLELISM=2",), ("MODEL_PARALLELISM=4",), ("FULLY_SHARDED=True",)],
)
def test_no_chip_gathers_the_vocabulary_of_all_tokens(overrides):
    program, collectives = exchanges(*overrides)
    kernel = 4 * 16 * VOCABULARY
    assert 10 * kernel < LOGITS
    assert collectives
    for one in collectives:  # the gradients may be added up in one exchange
        limit = LOGITS / 4 if one.kind == "all-reduce" else 1.1 * kernel
        assert one.bytes <= limit, one
    assert program.mesh.size == 8


def test_heads_that_do_not_divide_cost_no_gathers_in_the_sampling_loop():
    """Two heads on four chips: by columns they would divide, and each layer would gather them."""
    _, collectives = exchanges("MODEL_PARALLELISM=4")
    gathers = [one for one in collectives if one.kind == "all-gather" and "sampling" in one.source]
    assert sum(one.count for one in gathers) <= 2 * TARGET  # of a token's draw, none of a layer


def test_fully_sharded_parameters_are_on_one_chip_only():
    program = traced(*WIDE, "FULLY_SHARDED=True", "MODEL_PARALLELISM=2")
    held = resident(program)
    sizes = [leaf.size for leaf in jax.tree.leaves(program.state.abstract.params)]
    # Vectors and the small tables of relative positions stay whole.
    assert held["parameters"] < 1.1 * 4 * sum(sizes) / 8
    assert held["optimizer"] < 1.1 * 8 * sum(sizes) / 8


def test_a_step_reads_back_nothing_but_its_metrics(tmp_path, monkeypatch):
    """The transfer guard cannot see reads on CPU: every read of an array's value is noted."""
    read, noting = [], [False]
    value = ArrayImpl._value.fget

    def note(array):
        if noting[0]:
            read.append(array.shape)
        return value(array)

    def begins(self, what, step=None):
        noting[0] = what == "step" and 2 < step < 6

    monkeypatch.setattr(ArrayImpl, "_value", property(note))
    monkeypatch.setattr(Monitor, "begins", begins)
    options = [f'MODEL_DIR="{tmp_path}"', "TRAIN_STEPS=7", "EVALUATE_EVERY=0", "CHECKPOINT_EVERY=0"]
    options += ["EVALUATION_EXAMPLES=16", "train.train.tensorboard=False"]
    arguments = ["train", f"--gin_file={TINY}", *(f"--gin.{text}" for text in options)]
    assert command_line.main(arguments) == 0
    assert read and set(read) == {()}
    assert len(read) % 3 == 0 and len(read) / 3 < 50
    assert np.prod(read[0]) == 1
