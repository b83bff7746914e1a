"""The programs of the sweeps' cells that are no run file's, traced at full size."""

import pytest

from tests.configs import traces

# What makes a cell's method; sizes and tasks are traced with every run file.
METHOD = ("LAMBDA", "DIVERGENCE", "BETA", "ALPHA", "REWARD", "REPLAY")


def test_a_cell_of_every_method_traces_at_full_size(real_vocabulary):
    found = traces.programs(sweeps=True)
    assert len(found) > 20
    methods = {}
    for command, program in found.values():
        method = (*(program[name] for name in METHOD), program["TEACHER_MODEL"] == "None")
        methods.setdefault(method, (command, program))
    assert len(methods) > 15
    for command, program in methods.values():
        traces.trace(command, program)


@pytest.mark.slow
def test_every_cell_of_a_sweep_traces_at_full_size(real_vocabulary):
    for command, program in traces.programs(sweeps=True).values():
        traces.trace(command, program)
