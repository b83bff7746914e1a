"""The programs of the sweeps' cells that are no run file's, traced at full size."""

import pytest

from tests.configs import traces

# Settings of a cell's method that neither the run files' traces nor the methods' real steps
# (test_programs.py) have.
METHOD = ("BETA", "ALPHA", "REWARD")


def method_of(program):
    """The settings of a cell's method."""
    return [(name, program[name]) for name in METHOD]


def test_cells_with_every_setting_of_a_method_trace_at_full_size(real_vocabulary):
    """Every reward, share of a reward and β; every combination of them with `-m slow`."""
    found = traces.programs(sweeps=True)
    assert len(found) > 20
    some = traces.of_every_kind(found, method_of)
    assert len(some) > 2
    for command, program in some.values():
        traces.trace(command, program)


@pytest.mark.slow
def test_every_cell_of_a_sweep_traces_at_full_size(real_vocabulary):
    for command, program in traces.programs(sweeps=True).values():
        traces.trace(command, program)
